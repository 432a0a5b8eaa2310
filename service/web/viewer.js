// Dialog with one large image, its verdict, seed and rank, and the diffusers call that draws it again.

import { draftOf } from "./cost.js";
import { diffusersCall } from "./diffusers.js";
import { imagePath } from "./job.js";
import { imageUrl } from "./images.js";
import { $, copy, fillPairs, logit, score } from "./text.js";

const GONE = "# This model is not deployed now. `bestofn inspect` prints the call for a winner's file.";

export class Viewer {
  #dialog = $("viewer");
  #job = null;
  #order = [];
  #index = null;
  #pipelineOf;

  /** `closed(index)` gets the index of the last image; `useSeed(seed)` and `inFull(seed)` do as their buttons say.
   * `pipelineOf(model)` is as `diffusersCall` takes it; undefined: of a model that is not deployed. */
  constructor(closed, useSeed, inFull, pipelineOf) {
    this.#pipelineOf = pipelineOf;
    $("viewer-previous").addEventListener("click", () => this.#step(-1));
    $("viewer-next").addEventListener("click", () => this.#step(1));
    $("viewer-close").addEventListener("click", () => this.#dialog.close());
    $("viewer-use-seed").addEventListener("click", () => useSeed(this.#candidate.seed));
    $("viewer-in-full").addEventListener("click", () => inFull(this.#candidate.seed));
    $("viewer-copy-call").addEventListener("click", ({ target }) => copy($("viewer-call").textContent, target));
    this.#dialog.addEventListener("close", () => closed(this.#index));
    this.#dialog.addEventListener("click", ({ target }) => target === this.#dialog && this.#dialog.close());
    this.#dialog.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || event.target.tagName === "PRE") return;
      event.preventDefault();
      this.#step(step);
    });
  }

  get #candidate() {
    return this.#job.candidates.get(this.#index);
  }

  /** Show candidate `index` of a job; the arrows walk through `order`. */
  open(job, index, order) {
    [this.#job, this.#order] = [job, order];
    this.#show(index);
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  close() {
    if (this.#dialog.open) this.#dialog.close();
  }

  #step(by) {
    const next = this.#order[this.#order.indexOf(this.#index) + by];
    if (next !== undefined) this.#show(next);
  }

  #show(index) {
    this.#index = index;
    const job = this.#job;
    const { seed, verdict, rank } = this.#candidate;
    const won = job.images.find((image) => image.candidate === index);
    const path = imagePath(job, index);
    $("viewer-rank").textContent = rank
      ? `Rank ${rank} of ${job.candidates.size}`
      : `${job.candidates.size} of ${job.count} are judged`;
    $("viewer-title").textContent = won?.rank === 1 ? `The winner, candidate ${index}` : `Candidate ${index}`;
    fillPairs($("viewer-pairs"), [
      ["Judged", verdict.answer],
      ["Score", verdict.second ? `${score(verdict)}, the smaller of both` : score(verdict)],
      ["Logits", logits(verdict)],
      ...(verdict.second ? [["Second judge", verdict.second.answer]] : []),
      ...(verdict.second ? [["Its logits", logits(verdict.second)]] : []),
      seed === null ? ["File", this.#candidate.name ?? ""] : ["Seed", seed],
    ]);
    $("viewer-in-full").hidden = Boolean(won) || job.sent;
    $("viewer-use-seed").hidden = $("viewer-remake").hidden = job.sent;
    $("viewer-note").textContent = note(job, this.#candidate, won, path);
    const pipeline = this.#pipelineOf(job.model);
    $("viewer-call").textContent = job.sent ? "" : pipeline === undefined ? GONE : diffusersCall(job, seed, pipeline);
    const at = this.#order.indexOf(index);
    $("viewer-previous").disabled = at <= 0;
    $("viewer-next").disabled = at < 0 || at === this.#order.length - 1;
    this.#paint(path, fileName(job, this.#candidate, won));
  }

  async #paint(path, name) {
    const [image, download] = [$("viewer-image"), $("viewer-download")];
    download.hidden = true;
    const url = path && (await imageUrl(path));
    if (path !== imagePath(this.#job, this.#index)) return; // walked on meanwhile
    image.hidden = !url;
    if (!url) return;
    image.src = url;
    image.alt = `${this.#job.prompt}, candidate ${this.#index}`;
    const whole = this.#job.images.some((image) => image.candidate === this.#index);
    Object.assign(download, { hidden: !whole, href: url, download: name });
  }
}

/** A file name for an image: the prompt's first words and the seed; a sent image keeps its own. */
export function fileName(job, { seed, name }, won) {
  if (seed === null && name) return name;
  return `${nameOf(job)}-${seed ?? "ranked"}.${(won && job.parameters.format) || "webp"}`;
}

/** The prompt's first words, for names of files. */
export function nameOf({ prompt }) {
  const words = prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["image"];
  return words.slice(0, 8).join("-").slice(0, 60);
}

const logits = ({ yes_logit: yes, no_logit: no }) => `yes ${logit(yes)}, no ${logit(no)}`;

function note({ parameters, sent }, { solved_in_full }, won, path) {
  if (won || sent) return "";
  if (solved_in_full === false) return `Only a draft, in ${draftOf(parameters.draft)}. The call below draws it in full.`;
  if (!path) return "No image was kept of this candidate. The call below draws it.";
  return "A small copy: full images are kept of winners only. The call below draws this one in full.";
}
