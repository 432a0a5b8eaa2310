// Images of the job that is shown, fetched once each, with the key where there is one.

import { call } from "./api.js";
import { sleep } from "./stream.js";

let kept = new Map(); // path -> promise of an object URL

/** The image's object URL, or null where there is none (any more). A call that fails is made again for 21 seconds. */
export function imageUrl(path) {
  if (!kept.has(path)) kept.set(path, load(path));
  return kept.get(path);
}

/** Give `put` the object URL of an image, unless `holder` has it already or shows another by then. */
export function paint(holder, path, put) {
  if (!path || holder.dataset.path === path) return;
  holder.dataset.path = path;
  imageUrl(path).then((url) => url && holder.dataset.path === path && put(url));
}

/** Drop all images: another job will be shown. */
export function forget() {
  for (const loading of kept.values()) loading.then((url) => url && URL.revokeObjectURL(url));
  kept = new Map();
}

/** A small data URI of an image, `side` pixels at most, for keeping. */
export async function miniature(path, side = 96) {
  const url = await imageUrl(path);
  if (url === null) return null;
  const image = new Image();
  image.src = url;
  await image.decode();
  const scale = Math.min(1, side / Math.max(image.naturalWidth, image.naturalHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/webp", 0.8);
}

/** The image's bytes, from the browser's cache where it has them. Throws Problem. */
export const imageBlob = async (path) => (await call(path, { headers: { Accept: "image/*" } })).blob();

async function load(path) {
  for (const pause of [1, 4, 16, 0]) {
    try {
      return URL.createObjectURL(await imageBlob(path));
    } catch (problem) {
      if (!problem.passing || !pause) break;
      await sleep(1000 * pause);
    }
  }
  kept.delete(path);
  return null;
}
