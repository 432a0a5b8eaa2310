// History of this browser: prompts with a small image of each winner.

import { $, element, plural, seconds } from "./text.js";

const STORE = "bestofn.history";
const KEPT = 30;

const read = () => {
  try {
    return JSON.parse(localStorage.getItem(STORE)) ?? [];
  } catch {
    return [];
  }
};

function write(entries) {
  // Storage may be full or forbidden; images go first, and a page without a history is still a page.
  for (const kept of [entries, entries.map((entry) => ({ ...entry, thumbnail: null }))]) {
    try {
      return localStorage.setItem(STORE, JSON.stringify(kept));
    } catch {
      continue;
    }
  }
}

/** Keep what is known of a job; later words on the same job add to earlier ones. */
export function remember(id, words) {
  const entries = read();
  const known = entries.find((entry) => entry.id === id);
  if (known) Object.assign(known, words);
  else entries.unshift({ id, time: Date.now(), ...words });
  write(entries.slice(0, KEPT));
}

export const recall = (id) => read().find((entry) => entry.id === id) ?? null;
export const forgetAll = () => localStorage.removeItem(STORE);

/** Lists the jobs but the one that is shown; `open(entry)` is called with the one that is picked. */
export function drawHistory(open, current) {
  const entries = read().filter(({ id }) => id !== current);
  $("history").hidden = entries.length === 0;
  $("history-list").replaceChildren(
    ...entries.map((entry) => {
      const { id, prompt, count, time, score, status, thumbnail } = entry;
      const said = score ? `${score} · ` : ["failed", "canceled"].includes(status) ? `${status} · ` : "";
      const button = element(
        "button",
        { type: "button" },
        element("span", { className: "pixels" }, ...(thumbnail ? [element("img", { src: thumbnail, alt: "" })] : [])),
        element(
          "span",
          { className: "words" },
          element("b", {}, prompt),
          element("small", {}, `${said}${plural(count, "candidate")}, ${ago(time)}`),
        ),
      );
      button.addEventListener("click", () => open(entry));
      return element("li", {}, button);
    }),
  );
}

function ago(time) {
  const passed = (Date.now() - time) / 1000;
  if (passed < 60) return "just now";
  return passed < 86_400 ? `${seconds(passed)} ago` : new Date(time).toLocaleDateString();
}
