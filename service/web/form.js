// The request form, and the field that the server refused.

import { Extras } from "./extras.js";
import { Spending } from "./spending.js";
import { $, element, whole } from "./text.js";

const LONGEST_SEED = 2n ** 63n;
// A field of the request, or all below it: what the page calls it, and the control next to which a refusal is shown.
const FIELDS = {
  prompt: ["the prompt", () => $("prompt")],
  num_samples: ["the number of candidates", () => $("num_samples")],
  effort: ["effort", () => Spending.chosen],
  budget: ["the budget", () => $("budget")],
  "stop.confidence": ["how sure", () => $("confidence")],
  stop: ["stop early", () => $("confidence")],
  "draft.num_inference_steps": ["the steps of a draft", () => $("draft_steps")],
  "draft.depth": ["the layers of a draft", () => $("draft_depth")],
  "draft.keep": ["the best to solve", () => $("draft_keep")],
  draft: ["drafts", () => $("draft_steps")],
  depth: ["the layers", () => $("depth")],
  rule: ["the second judge", () => $("second")],
  "finals.max_entrants": ["entrants", () => $("finals_max_entrants")],
  "finals.margin": ["how close", () => $("finals_margin")],
  finals: ["finals", () => $("finals")],
  num_inference_steps: ["the number of steps", () => document.querySelector("[name=steps]:checked")],
  seed: ["the seed", () => $("seed")],
  negative_prompt: ["what to avoid", () => $("negative_prompt")],
  top_k: ["the number of winners", () => $("top_k")],
  model: ["the model", () => $("model")],
  judge: ["the judge", () => $("judge")],
  images: ["the images", () => $("pictures")],
};
const known = (field) => FIELDS[field] ?? FIELDS[field.split(".")[0]] ?? [field, () => null];

// Replacement texts for abilities that the workers have lost since the page was opened.
const GONE = {
  rule: "no worker can count what two judges accept any more, or not with finals: leave it out",
  finals: "no worker can play finals any more: leave them out",
};

/** What the server says of a field, with the page's word for it in place of the name that it begins with. */
export const inOurWords = (said, field) =>
  GONE[field] ?? (field && said.startsWith(field) ? known(field)[0] + said.slice(field.length) : said);

export class Form {
  #models = [];
  #locked = false;
  #wrong = null; // the control that is complained about
  #spending = new Spending();
  #extras = new Extras();

  constructor() {
    for (const choice of document.getElementsByName("steps")) choice.addEventListener("change", () => this.#saySteps());
    $("seed").addEventListener("input", () => this.#lock($("seed").value.trim() !== ""));
    $("lock").addEventListener("click", () => this.#lock(!this.#locked && $("seed").value.trim() !== ""));
    $("more-button").addEventListener("click", () => this.#unfold($("more").hidden));
    for (const name of ["model", "judge"]) $(name).addEventListener("change", () => this.#sayModel());
    $("prompt").addEventListener("input", () => this.complain(null));
    $("prompt").addEventListener("input", () => this.#grow());
  }

  /** Deployed models, as GET /v1/models lists them: their defaults, and a choice where there are several; and warm
   * workers, as GET /status lists them. */
  know(models, workers) {
    this.#models = models;
    this.#extras.know(workers);
    $("model").replaceChildren(...models.map(({ id }) => element("option", { value: id }, id)));
    $("model").parentElement.hidden = models.length < 2;
    this.#sayModel();
  }

  /** Pipeline of a job's model, null for SANA; undefined if its revision is not deployed. */
  pipelineOf({ name, revision }) {
    return this.#models.find((model) => model.id === name && model.revision === revision)?.pipeline;
  }

  get knows() {
    return this.#models.length > 0;
  }

  /** The body of POST /generate. Throws {field, message} for what the server could not even read. */
  read() {
    const prompt = $("prompt").value;
    const seed = $("seed").value.trim();
    if (!prompt.trim()) throw { field: "prompt", message: "Say what the image should show." };
    // The value of such a control is empty, as if nothing was written there.
    const bad = [...$("ask").querySelectorAll(":invalid")].find((control) => control.validity.badInput);
    if (bad && !bad.closest("[hidden]:not(#more)"))
      throw { field: nameOf(bad), message: "This is not a number. Write it without commas and spaces: 1024, or 12.5." };
    const body = {
      prompt,
      ...this.#spending.read(),
      ...this.#extras.read(),
      top_k: whole("top_k", "Winners", $("top_k").value, 16),
      thumbnails: true,
    };
    if (body.top_k > body.num_samples)
      throw { field: "top_k", message: `There cannot be more winners than candidates: at most ${body.num_samples}.` };
    if (this.#locked) {
      if (!/^\d{1,19}$/.test(seed) || BigInt(seed) >= LONGEST_SEED)
        throw {
          field: "seed",
          message: "A seed is a whole number from 0 to 9,223,372,036,854,775,807; leave it empty for a random one.",
        };
      body.seed = BigInt(seed).toString();
    }
    if ($("negative_prompt").value.trim()) body.negative_prompt = $("negative_prompt").value;
    const steps = this.#steps();
    if (steps !== null) body.num_inference_steps = steps;
    if (this.#models.length > 1) body.model = $("model").value;
    if (!$("judge").parentElement.hidden) body.judge = $("judge").value;
    return body;
  }

  /**
   * Fill the box with the parameters of a job; its seed is shown, and kept only if it is locked.
   *
   * `asked`: what was asked for in its stead where an effort or a budget chose candidates, drafts and stop.
   */
  show(parameters, asked = parameters) {
    $("prompt").value = parameters.prompt;
    this.#spending.show(asked);
    $("top_k").value = parameters.top_k;
    $("negative_prompt").value = parameters.negative_prompt;
    $("seed").value = parameters.seed;
    if (parameters.model && this.#models.some(({ id }) => id === parameters.model)) $("model").value = parameters.model;
    this.#sayModel();
    const share = parameters.num_inference_steps / (this.#model?.num_inference_steps ?? NaN);
    const steps = [...document.getElementsByName("steps")].find(
      (choice) => Math.abs(Number(choice.value) - share) < 0.05,
    );
    if (steps) steps.checked = true;
    this.#saySteps();
    const more = this.#extras.show(parameters);
    if (more || parameters.negative_prompt || parameters.top_k > 1 || asked.stop || asked.draft) this.#unfold(true);
    this.#grow();
  }

  /** Ask for the seed that is shown, not for a random one. */
  lockSeed() {
    this.#lock(true);
    this.#unfold(true);
  }

  /** Ask for this seed. */
  useSeed(seed) {
    $("seed").value = seed;
    this.lockSeed();
  }

  /** Ask for a single candidate, solved in full. */
  one() {
    this.#spending.show({ num_samples: 1 });
    $("top_k").value = 1;
    for (const name of ["draft", "stop", "finals", "second"]) if ($(name).checked) $(name).click();
  }

  /** Show what is wrong: next to the control of `field`, or below the box where there is none; null: nothing is. */
  complain(message, field = null) {
    const said = $("problem");
    this.#wrong?.removeAttribute("aria-invalid");
    this.#wrong?.removeAttribute("aria-describedby");
    this.#wrong = message && field ? controlOf(field) : null;
    if (this.#wrong && $("more").contains(this.#wrong)) this.#unfold(true);
    const control = this.#wrong?.closest("fieldset, .field");
    (control ?? $("ask")).append(said);
    said.classList.toggle("inline", Boolean(control));
    said.hidden = !message;
    said.textContent = message ?? "";
    this.#wrong?.setAttribute("aria-invalid", "true");
    this.#wrong?.setAttribute("aria-describedby", "problem");
    this.#wrong?.focus();
  }

  get #model() {
    return this.#models.find(({ id }) => id === $("model").value) ?? this.#models[0] ?? null;
  }

  #steps() {
    const share = Number(document.querySelector("[name=steps]:checked").value);
    if (!this.#model || share === 1) return null;
    return Math.min(100, Math.max(1, Math.round(this.#model.num_inference_steps * share)));
  }

  #sayModel() {
    $("steps-field").hidden = !this.#model;
    const judges = this.#model?.judges ?? [];
    $("judge").parentElement.hidden = judges.length < 2;
    const chosen = $("judge").value;
    $("judge").replaceChildren(
      ...judges.map(({ name }) => element("option", { value: name, selected: name === chosen }, name)),
    );
    this.#extras.offer(this.#model, judges.length > 1 ? $("judge").value : null);
    this.#saySteps();
  }

  #saySteps() {
    $("steps").textContent = this.#model ? `· ${this.#steps() ?? this.#model.num_inference_steps}` : "";
  }

  #lock(on) {
    this.#locked = on;
    $("lock").setAttribute("aria-pressed", on);
    if (!on && document.activeElement === $("lock")) $("seed").value = "";
  }

  #unfold(on) {
    $("more").hidden = !on;
    $("more-button").setAttribute("aria-expanded", on);
    $("more-button").textContent = on ? "Less" : "More";
  }

  #grow() {
    if (CSS.supports("field-sizing", "content")) return;
    $("prompt").style.height = "auto";
    $("prompt").style.height = `${$("prompt").scrollHeight}px`;
  }
}

const nameOf = (control) => Object.keys(FIELDS).find((name) => FIELDS[name][1]() === control);

/** The control of a field; what an effort or a budget chose is wrong with that choice. */
function controlOf(field) {
  const control = known(field)[1]();
  return control?.closest("[hidden]:not(#more)") ? Spending.chosen : control;
}
