// The candidates as tiles, filled as they are judged; arrow keys move, Enter opens.

import { ended, ordered, imagePath } from "./job.js";
import { paint } from "./images.js";
import { $, element, onPick, score } from "./text.js";

const SHOWN = 512; // the server keeps no more thumbnails of a job
const FOLDED = 32; // tiles of a job that has ended: the knockout stays in sight

export class Grid {
  #list = $("grid");
  #tiles = new Map(); // index -> tile
  all = false; // whether all tiles of a job that has ended are shown

  /** `open(index)` shows a candidate large. */
  constructor(open) {
    onPick(this.#list, open);
    this.#list.addEventListener("keydown", (event) => this.#walk(event));
  }

  clear() {
    this.#tiles.clear();
    this.all = false;
    this.#list.replaceChildren();
  }

  draw(job, bestFirst) {
    const count = Math.min(job.count, SHOWN);
    this.#list.classList.toggle("dense", count > 64);
    const judged = ordered(job, bestFirst);
    const all = [...Array(count).keys()];
    const waiting = all.filter((index) => !job.candidates.has(index));
    const order = ended(job) ? judged : bestFirst ? [...judged, ...waiting] : all;
    order.splice(count);
    const folded = ended(job) && !this.all && order.length > FOLDED;
    $("all").hidden = !folded;
    $("all").textContent = `Show all ${order.length}`;
    if (folded) order.splice(FOLDED);
    for (const index of order) this.#update(job, index);
    const tiles = order.map((index) => this.#tiles.get(index).parentElement);
    // Elements that stay where they are keep their focus and are not laid out again.
    if (tiles.some((tile, i) => this.#list.children[i] !== tile) || tiles.length !== this.#list.children.length) {
      const focused = document.activeElement;
      this.#list.replaceChildren(...tiles);
      if (focused && this.#list.contains(focused)) focused.focus({ preventScroll: true });
      else this.#stop(this.#list.querySelector("button:not(:disabled)"));
    }
    if (!this.#list.querySelector("[tabindex='0']")) this.#stop(this.#list.querySelector("button:not(:disabled)"));
    const note = $("grid-note");
    note.hidden = job.count <= SHOWN;
    note.textContent = `${SHOWN} of ${job.count.toLocaleString("en")} are shown.`;
  }

  focus(index) {
    const tile = this.#tiles.get(index);
    if (!tile || tile.disabled) return;
    this.#stop(tile);
    tile.focus();
  }

  /** The one tile that the tab key stops at. */
  #stop(tile) {
    this.#list.querySelector("[tabindex='0']")?.setAttribute("tabindex", "-1");
    tile?.setAttribute("tabindex", "0");
  }

  #update(job, index) {
    let tile = this.#tiles.get(index);
    if (!tile) {
      tile = element("button", { type: "button", className: "tile", disabled: true, tabIndex: -1, dataset: { index } });
      tile.append(element("span", { className: "pixels" }), element("span", { className: "label" }));
      tile.setAttribute("aria-label", `Candidate ${index}, not judged yet`);
      this.#tiles.set(index, tile);
      element("li", {}, tile);
    }
    const candidate = job.candidates.get(index);
    if (!candidate) return;
    const [pixels, label] = tile.children;
    const { answer, p_yes: p } = candidate.verdict;
    const leads = index === job.leader;
    const drafted = candidate.solved_in_full === false;
    const state = `${answer} ${p} ${candidate.rank} ${leads} ${drafted}`;
    if (tile.dataset.state !== state) {
      tile.dataset.state = state;
      tile.disabled = false;
      tile.dataset.answer = answer;
      tile.classList.toggle("leads", leads);
      tile.classList.toggle("drafted", drafted);
      const rank = candidate.rank ? `rank ${candidate.rank}, ` : "";
      tile.setAttribute("aria-label", `Candidate ${index}, ${rank}judged ${answer}${drafted ? " as a draft" : ""}, score ${score(candidate.verdict)}`);
      const badge = element("b", {}, score(candidate.verdict));
      label.replaceChildren(element("i", {}, candidate.rank ? `${candidate.rank}` : ""), badge);
      label.style.setProperty("--score", p ?? 0);
    }
    paint(pixels, imagePath(job, index), (url) => pixels.replaceChildren(element("img", { src: url, alt: "" })));
  }

  #walk(event) {
    const tiles = [...this.#list.querySelectorAll("button:not(:disabled)")];
    const at = tiles.indexOf(document.activeElement);
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const columns = getComputedStyle(this.#list).gridTemplateColumns.split(" ").length;
    const moves = {
      ArrowLeft: -1,
      ArrowRight: 1,
      ArrowUp: -columns,
      ArrowDown: columns,
      Home: -at,
      End: tiles.length - 1 - at,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const next = tiles[at + moves[event.key]];
    if (next) this.focus(Number(next.dataset.index));
  }
}
