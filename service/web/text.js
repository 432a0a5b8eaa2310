// Elements and words: what every part of the page writes with.

export const $ = (id) => document.getElementById(id);

/** An element with properties; children are elements or text. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  const { dataset, ...rest } = properties;
  Object.assign(made, rest);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}

/** An SVG element with attributes. */
export function drawing(name, attributes = {}) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Calls `open` with the index of the candidate in `box` that is clicked. */
export function onPick(box, open) {
  box.addEventListener("click", ({ target }) => {
    const picked = target.closest("[data-index]:not(:disabled)");
    if (picked) open(Number(picked.dataset.index));
  });
}

/** Fills a <dl> with [term, description] pairs. */
export function fillPairs(list, pairs) {
  list.replaceChildren(
    ...pairs.map(([term, said]) => element("div", {}, element("dt", {}, term), element("dd", {}, said))),
  );
}

export const score = ({ p_yes: p }) => (p === null ? "–" : p.toFixed(3));
export const logit = (x) => (x === null ? "not finite" : x.toFixed(2));
export const plural = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
export const sentence = (text) =>
  text ? text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".") : "";

/** 7 s, 3 min, 2 h: a time as one would say it. */
export function seconds(value) {
  if (value < 90) return `${Math.max(1, Math.round(value))} s`;
  return value < 5400 ? `${Math.round(value / 60)} min` : `${Math.round(value / 3600)} h`;
}

/** The whole number that was written for a field. Throws {field, message}. */
export function whole(field, what, text, most) {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1 || value > most)
    throw { field, message: `${what}: a whole number from 1 to ${most.toLocaleString("en")}.` };
  return value;
}

/** The number above 0 of control `id`. Throws {field, message}. */
export function positive(id, message, field = id) {
  const value = Number($(id).value);
  if (!(value > 0 && Number.isFinite(value))) throw { field, message };
  return value;
}

/** Copies text and says so on the button for a moment. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages that came without TLS from another machine have no clipboard.
    const area = element("textarea", { value: text, className: "unseen" });
    (button.closest("dialog") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const label = (button.dataset.label ??= button.textContent);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = label), 1500);
}
