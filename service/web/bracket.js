// The knockout as a tree: half of the entrants on each side, the winner in the middle; earlier rounds folded below.

import { ended, imagePath } from "./job.js";
import { paint } from "./images.js";
import { $, drawing, element, onPick, plural, score } from "./text.js";

const SIZES = [84, 64, 50, 40, 30]; // of an image in the last round, the one before, ...
const GAP = 24;
const CENTRE = 176;
const MARGIN = 4;

/** Entrants of every round, first round first: of `count` candidates, or of a bracket that is known. */
export function entrants(count) {
  const sizes = [count];
  while (sizes.at(-1) > 1) sizes.push(Math.ceil(sizes.at(-1) / 2));
  return sizes;
}

/** The candidate in `place` of `round`, or null as long as it is not known. */
export function entrant(job, round, place) {
  if (round > 0) return job.bracket[round - 1]?.[place]?.winner ?? null;
  const match = job.bracket[0]?.[place >> 1];
  if (match) return place % 2 ? match.b : match.a;
  return job.candidates.has(place) ? place : null;
}

/** Where images and lines lie: nodes {round, place, x, y, side} with x, y in the middle, lines from a node to its next. */
export function layout(sizes, first, width) {
  const last = sizes.length - 1;
  const rounds = last - first; // columns on each side
  const span = SIZES.slice(0, rounds).reduce((sum, size) => sum + size + GAP, 0);
  const scale = Math.min(1.15, (width - 2 * MARGIN) / (2 * span + CENTRE));
  const leaf = (SIZES[rounds - 1] ?? 0) * scale;
  const rows = 2 ** Math.max(0, rounds - 1);
  const height = Math.max(rows * (leaf + 6 * Math.max(scale, 0.7)), (CENTRE + 2 * GAP) * scale);
  const nodes = [{ round: last, place: 0, x: width / 2, y: height / 2, side: CENTRE * scale }];
  for (const half of [0, 1]) {
    const towards = half ? 1 : -1;
    let x = width / 2 + towards * (CENTRE / 2) * scale;
    for (let back = 0; back < rounds; back++) {
      const side = SIZES[back] * scale;
      x += towards * (GAP * scale + side / 2);
      for (let i = 0; i < 2 ** back; i++) {
        const place = half * 2 ** back + i;
        if (place < sizes[last - 1 - back])
          nodes.push({ round: last - 1 - back, place, x, y: (height * (i + 0.5)) / 2 ** back, side });
      }
      x += (towards * side) / 2;
    }
  }
  const at = new Map(nodes.map((node) => [`${node.round}/${node.place}`, node]));
  const lines = nodes.slice(1).map((node) => ({ from: node, to: at.get(`${node.round + 1}/${node.place >> 1}`) }));
  return { nodes, lines, height };
}

/** Draws an empty tree into `box`; returns its nodes {group, image, round, place} and lines {line, from, to}. */
export function plant(box, sizes, first, width) {
  const { nodes, lines, height } = layout(sizes, first, width);
  const svg = drawing("svg", {
    viewBox: `0 ${-MARGIN} ${width} ${height + 2 * MARGIN}`,
    width,
    height: height + 2 * MARGIN,
    role: "img",
  });
  const edge = (node, other) => node.x + (Math.sign(other.x - node.x) * node.side) / 2;
  const paths = lines.map(({ from, to }) => {
    const [x1, x2] = [edge(from, to), edge(to, from)];
    return { line: drawing("path", { d: `M${x1} ${from.y}H${(x1 + x2) / 2}V${to.y}H${x2}` }), from, to };
  });
  const groups = nodes.map(({ round, place, x, y, side }) => {
    const group = drawing("g", { transform: `translate(${x - side / 2} ${y - side / 2})` });
    const radius = Math.min(8, side / 7);
    const image = drawing("image", { width: side, height: side, preserveAspectRatio: "xMidYMid slice" });
    image.style.clipPath = `inset(0 round ${radius}px)`;
    group.append(image, drawing("rect", { width: side, height: side, rx: radius }));
    return { group, image, round, place };
  });
  svg.append(...paths.map(({ line }) => line), ...groups.map(({ group }) => group));
  box.replaceChildren(svg);
  return [groups, paths];
}

export class BracketView {
  #box = $("bracket");
  #drawn = null; // what the present tree was made for
  #nodes = [];
  #lines = [];
  #job = null;
  #first = 0; // the first round that the tree shows
  #played = 0;

  /** `open(index)` shows a candidate large. */
  constructor(open) {
    $("earlier").addEventListener("toggle", () => this.#unfold());
    onPick($("knockout"), open);
  }

  clear() {
    this.#drawn = null;
    this.#played = 0;
    this.#box.replaceChildren();
    $("matches").replaceChildren();
    $("earlier").open = false;
  }

  draw(job) {
    const sizes = entrants(job.images.length ? bracketSize(job) : job.count);
    $("knockout").hidden = sizes[0] < 2 || (ended(job) && job.leader === null);
    const width = this.#box.clientWidth;
    if (!width) return; // it is hidden, or all of the page is: on paper, by the viewer
    const most = width >= 820 ? 32 : width >= 540 ? 16 : 8;
    const first = Math.max(
      0,
      sizes.findIndex((size) => size <= most),
    );
    this.#job = job;
    this.#first = first;
    const made = `${job.id} ${sizes[0]} ${first} ${width}`;
    if (made !== this.#drawn) [this.#nodes, this.#lines] = plant(this.#box, sizes, first, width);
    this.#drawn = made;
    const out = new Set(
      job.bracket.flatMap((matches, r) =>
        (matches ?? []).flatMap((m) => (m?.b == null ? [] : [`${r}/${m.winner === m.a ? m.b : m.a}`])),
      ),
    );
    for (const node of this.#nodes) this.#fill(job, node, out);
    for (const { line, from, to } of this.#lines) {
      const [a, b] = [entrant(job, from.round, from.place), entrant(job, to.round, to.place)];
      line.setAttribute("class", a === null || a !== b ? "" : a === job.leader ? "won leads" : "won");
    }
    const played = job.bracket.reduce(
      (sum, matches) => sum + matches.filter((match) => match && match.b !== null).length,
      0,
    );
    const folded = first > 0 ? `, the last ${sizes[first]} shown` : "";
    const by = job.finals ? ", by verdict" : "";
    $("knockout-facts").textContent =
      `${plural(sizes[0], "candidate")}${folded}, ${played} of ${plural(sizes[0] - 1, "match", "matches")} played${by}`;
    this.#box.firstChild.setAttribute("aria-label", `Knockout of ${sizes[0]} candidates, ${played} matches played`);
    $("earlier").hidden = first === 0;
    $("earlier").firstElementChild.textContent = first === 1 ? "The round before" : `The ${first} rounds before`;
    if (played !== this.#played) {
      this.#unfold();
      $("matches").replaceChildren(...sentences(job, first).map((said) => element("li", {}, said)));
    }
    this.#played = played;
  }

  #fill(job, { group, image, round, place }, out) {
    const index = entrant(job, round, place);
    const lost = index !== null && out.has(`${round}/${index}`);
    group.setAttribute(
      "class",
      index === null ? "open" : `known${lost ? " lost" : ""}${index === job.leader ? " leads" : ""}`,
    );
    if (index === null) return;
    group.dataset.index = index;
    paint(image, imagePath(job, index), (url) => image.setAttribute("href", url));
  }

  #unfold() {
    if (!$("earlier").open || !this.#job) return;
    const job = this.#job;
    const rounds = job.bracket.slice(0, this.#first).map((matches, round) => {
      const pairs = matches.filter(Boolean).map(({ a, b, winner }) => {
        const sides = [a, b]
          .filter((index) => index !== null)
          .map((index) => small(job, index, index === winner ? "won" : "lost"));
        return element("li", {}, ...sides);
      });
      return element("section", {}, element("h3", {}, `Round ${round + 1}`), element("ol", {}, ...pairs));
    });
    $("earlier").lastElementChild.replaceChildren(...rounds);
  }
}

/** Matches from round `first` on, a sentence each: the tree as text. */
export function sentences(job, first) {
  const named = (index) => `candidate ${index} (${score(job.candidates.get(index).verdict)})`;
  return job.bracket.slice(first).flatMap((matches, i) =>
    (matches ?? [])
      .filter((match) => match && match.b !== null && match.winner !== null)
      .map(({ a, b, winner }) => `Round ${first + i + 1}: ${named(winner)} beat ${named(winner === a ? b : a)}`),
  );
}

/** A candidate as a small button, with its fate in a word. */
export function small(job, index, fate) {
  const tile = element("button", { type: "button", className: fate === "lost" ? fate : "", dataset: { index } });
  tile.setAttribute("aria-label", `Candidate ${index}, ${fate}`);
  paint(tile, imagePath(job, index), (url) => tile.append(element("img", { src: url, alt: "" })));
  return tile;
}

// Candidates that were only drafted do not play, nor do candidates after a stop. A single promoted candidate wins without a match.
const bracketSize = (job) => job.bracket[0]?.reduce((sum, match) => sum + (match.b === null ? 1 : 2), 0) ?? 1;
