// The best score so far against the candidates judged, as a small line.

import { drawing } from "./text.js";

const WIDTH = 420;
const HEIGHT = 132;
const LEFT = 38;
const RIGHT = 46;
const TOP = 12;
const BOTTOM = 22;

/** Draws `points`, pairs of judged candidates and best score, for a job of `count` candidates. */
export function drawCurve(svg, points, count) {
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  const [low, high] = range(points.map(([, best]) => best));
  const x = (judged) => LEFT + ((WIDTH - LEFT - RIGHT) * (judged - 1)) / Math.max(1, count - 1);
  const y = (best) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - best)) / (high - low);

  const parts = [low, (low + high) / 2, high].flatMap((value) => [
    drawing("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "rule" }),
    words(LEFT - 7, y(value) + 4, value.toFixed(2).replace(/0$/, ""), "end"),
  ]);
  parts.push(words(LEFT, HEIGHT - 4, "1", "start"));
  if (count > 1) parts.push(words(WIDTH - RIGHT, HEIGHT - 4, `${count}`, "end"));
  if (points.length) {
    const path = points
      .map(([judged, best], i) => (i ? `H${x(judged)}V${y(best)}` : `M${x(judged)} ${y(best)}`))
      .join("");
    const [judged, best] = points.at(-1);
    parts.push(drawing("path", { d: path, class: "best" }));
    for (const [i, [at, value]] of points.entries())
      if (i === 0 || value > points[i - 1][1])
        parts.push(drawing("circle", { cx: x(at), cy: y(value), r: 3, class: "best" }));
    parts.push(words(x(judged) + 8, y(best) + 4, best.toFixed(3), "start", "value"));
    svg.setAttribute("aria-label", `Best score ${best.toFixed(3)} after ${judged} of ${count} candidates`);
  } else {
    svg.setAttribute("aria-label", "No candidate is judged yet");
  }
  svg.replaceChildren(...parts);
}

/** Tenths around the scores, or all from 0 to 1 where they are far apart. */
function range(scores) {
  if (!scores.length) return [0, 1];
  const low = Math.floor(Math.min(...scores) * 10) / 10;
  const high = Math.max(Math.ceil(Math.max(...scores) * 10) / 10, low + 0.1);
  return high - low > 0.45 ? [0, 1] : [low, high];
}

function words(x, y, text, anchor, name = "tick") {
  const made = drawing("text", { x, y, "text-anchor": anchor, class: name });
  made.textContent = text;
  return made;
}
