// Downloads of all candidates of a job: their images in one zip, and a contact sheet.

import { imagePath, ordered } from "./job.js";
import { imageBlob } from "./images.js";
import { element, plural, score } from "./text.js";

const TILES = 66; // on a sheet; of more candidates, the best
const [WIDTH, MARGIN, GAP, CAPTION, LINE] = [1600, 48, 14, 34, 52]; // pixels
const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

/** Give the browser a file to keep. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** All images that the server keeps of a job, best first, as a zip. Throws Problem. */
export async function zipOf(job) {
  const files = [];
  for (const index of ordered(job, true)) {
    const path = imagePath(job, index);
    if (!path) continue;
    const blob = await imageBlob(path);
    const { rank, seed } = job.candidates.get(index);
    const which = seed === null ? "" : `-seed-${seed}`;
    files.push({
      name: `${`${rank ?? 0}`.padStart(4, "0")}-candidate-${index}${which}.${blob.type.split("/")[1] ?? "bin"}`,
      blob,
    });
  }
  return zip(files);
}

/** One image of the best candidates of a job, by rank. Throws Problem. */
export async function sheetOf(job, facts) {
  const shown = ordered(job, true).slice(0, TILES);
  const columns = Math.min(11, Math.max(4, Math.ceil(Math.sqrt(1.5 * shown.length))));
  const side = Math.floor((WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns);
  const canvas = element("canvas", { width: WIDTH, height: 1 });
  const pen = canvas.getContext("2d");
  const title = "600 42px system-ui, sans-serif";
  pen.font = title;
  const lines = wrapped(pen, job.prompt, WIDTH - 2 * MARGIN);
  const top = MARGIN + lines.length * LINE + 56;
  canvas.height = top + Math.ceil(shown.length / columns) * (side + CAPTION + GAP) + MARGIN; // which clears the pen
  Object.assign(pen, { fillStyle: "#fff", textBaseline: "top" });
  pen.fillRect(0, 0, canvas.width, canvas.height);
  const write = (text, x, y, font, colour) => (Object.assign(pen, { font, fillStyle: colour }), pen.fillText(text, x, y));
  lines.forEach((line, i) => write(line, MARGIN, MARGIN + i * LINE, title, "#17181c"));
  const count = plural(job.candidates.size, "candidate");
  write(`Best of ${count} · ${facts}`, MARGIN, top - 46, "20px system-ui, sans-serif", "#5b5f6b");
  for (const [place, index] of shown.entries()) {
    const x = MARGIN + (place % columns) * (side + GAP);
    const y = top + Math.floor(place / columns) * (side + CAPTION + GAP);
    pen.fillStyle = "#e4e5e9";
    pen.fillRect(x, y, side, side);
    const path = imagePath(job, index);
    if (path) await paint(pen, await imageBlob(path), x, y, side);
    const { rank, verdict } = job.candidates.get(index);
    write(`${rank ?? ""} · ${score(verdict)}`, x, y + side + 8, "18px system-ui, sans-serif", "#17181c");
  }
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

/** Draw an image into a square, its middle where it is not one. */
async function paint(pen, blob, x, y, side) {
  const image = await createImageBitmap(blob);
  const part = Math.min(image.width, image.height);
  pen.drawImage(image, (image.width - part) / 2, (image.height - part) / 2, part, part, x, y, side, side);
  image.close();
}

/** A text in at most three lines of this width. */
function wrapped(pen, text, width) {
  const lines = [""];
  for (const word of text.split(/\s+/)) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (pen.measureText(longer).width <= width || !lines.at(-1)) lines[lines.length - 1] = longer;
    else if (lines.length === 3) return [...lines.slice(0, 2), `${lines[2]} …`];
    else lines.push(word);
  }
  return lines;
}

/** A zip without compression: images are compressed already. */
async function zip(files) {
  const [parts, directory] = [[], []];
  let offset = 0;
  for (const { name, blob } of files) {
    const bytes = new TextEncoder().encode(name);
    const sums = [await crc32(blob), blob.size, blob.size];
    const common = [[2, 20], [2, 0x0800], [2, 0], [2, 0], [2, 0x21], ...sums.map((sum) => [4, sum]), [2, bytes.length], [2, 0]]; // names are UTF-8; 1980-01-01
    const head = record([[4, 0x04034b50], ...common]);
    directory.push(record([[4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]]), bytes);
    parts.push(head, bytes, blob);
    offset += head.length + bytes.length + blob.size;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const count = files.length;
  const end = record([[4, 0x06054b50], [2, 0], [2, 0], [2, count], [2, count], [4, size], [4, offset], [2, 0]]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** Little-endian numbers, each with its size in bytes. */
function record(numbers) {
  return Uint8Array.from(numbers.flatMap(([size, value]) => Array.from({ length: size }, (_, i) => value >>> (8 * i))));
}

async function crc32(blob) {
  let sum = -1;
  for (const byte of new Uint8Array(await blob.arrayBuffer())) sum = TABLE[(sum ^ byte) & 0xff] ^ (sum >>> 8);
  return ~sum >>> 0;
}
