// The box: what is asked for, and which part of it the server did not like.

import { $, element } from "./text.js";

const LONGEST_SEED = 2n ** 63n;
const FIELDS = ["prompt", "num_samples", "seed", "negative_prompt", "top_k", "model", "judge"];

export class Form {
  #models = [];
  #locked = false;

  constructor() {
    for (const choice of quick()) choice.addEventListener("change", () => ($("num_samples").value = ""));
    $("num_samples").addEventListener("input", () => this.#sayCount($("num_samples").value));
    for (const choice of document.getElementsByName("effort"))
      choice.addEventListener("change", () => this.#sayEffort());
    $("seed").addEventListener("input", () => this.#lock($("seed").value.trim() !== ""));
    $("lock").addEventListener("click", () => this.#lock(!this.#locked && $("seed").value.trim() !== ""));
    $("more-button").addEventListener("click", () => this.#unfold($("more").hidden));
    $("model").addEventListener("change", () => this.#sayModel());
    $("prompt").addEventListener("input", () => this.complain(null));
    $("prompt").addEventListener("input", () => this.#grow());
  }

  /** Deployed models, as GET /v1/models lists them: their defaults, and a choice where there are several. */
  know(models) {
    this.#models = models;
    $("model").replaceChildren(...models.map(({ id }) => element("option", { value: id }, id)));
    $("model").parentElement.hidden = models.length < 2;
    this.#sayModel();
  }

  get knows() {
    return this.#models.length > 0;
  }

  /** The body of POST /generate. Throws {field, message} for what the server could not even read. */
  read() {
    const prompt = $("prompt").value;
    const seed = $("seed").value.trim();
    if (!prompt.trim()) throw { field: "prompt", message: "Say what the picture should show." };
    const count = quick().find((choice) => choice.checked)?.value ?? $("num_samples").value;
    const body = {
      prompt,
      num_samples: whole("num_samples", count, 4096),
      top_k: whole("top_k", $("top_k").value, 16),
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

  /** Fill the box with the parameters of a job; its seed is shown, and kept only if it is locked. */
  show(parameters) {
    $("prompt").value = parameters.prompt;
    this.#sayCount(`${parameters.num_samples}`);
    $("top_k").value = parameters.top_k;
    $("negative_prompt").value = parameters.negative_prompt;
    $("seed").value = parameters.seed;
    if (parameters.model && this.#models.some(({ id }) => id === parameters.model)) $("model").value = parameters.model;
    this.#sayModel();
    const share = parameters.num_inference_steps / (this.#model?.num_inference_steps ?? NaN);
    const effort = [...document.getElementsByName("effort")].find(
      (choice) => Math.abs(Number(choice.value) - share) < 0.05,
    );
    if (effort) effort.checked = true;
    this.#sayEffort();
    if (parameters.negative_prompt || parameters.top_k > 1) this.#unfold(true);
    this.#grow();
  }

  /** Ask for the seed that is shown, not for a random one. */
  lockSeed() {
    this.#lock(true);
  }

  /** Say what is wrong, beside the box and at the field; null: nothing is. */
  complain(message, field = null) {
    $("problem").hidden = !message;
    $("problem").textContent = message ?? "";
    for (const name of FIELDS) $(name).removeAttribute("aria-invalid");
    if (!message || !FIELDS.includes(field)) return;
    if ($("more").contains($(field))) this.#unfold(true);
    $(field).setAttribute("aria-invalid", "true");
    $(field).focus();
  }

  get #model() {
    return this.#models.find(({ id }) => id === $("model").value) ?? this.#models[0] ?? null;
  }

  #steps() {
    const share = Number(document.querySelector("[name=effort]:checked").value);
    if (!this.#model || share === 1) return null;
    return Math.min(100, Math.max(1, Math.round(this.#model.num_inference_steps * share)));
  }

  #sayModel() {
    $("effort").hidden = !this.#model;
    const judges = this.#model?.judges ?? [];
    $("judge").parentElement.hidden = judges.length < 2;
    const chosen = $("judge").value;
    $("judge").replaceChildren(
      ...judges.map(({ name }) => element("option", { value: name, selected: name === chosen }, name)),
    );
    this.#sayEffort();
  }

  #sayEffort() {
    $("steps").textContent = this.#model ? `· ${this.#steps() ?? this.#model.num_inference_steps} steps` : "";
  }

  /** A number of candidates: one of the quick choices, or written beside them. */
  #sayCount(value) {
    for (const choice of quick()) choice.checked = choice.value === value;
    $("num_samples").value =
      quick().some((choice) => choice.checked) && document.activeElement !== $("num_samples") ? "" : value;
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

const quick = () => [...document.getElementsByName("quick-samples")];

function whole(field, text, most) {
  const value = Number(text);
  const what = field === "top_k" ? "Winners" : "Candidates";
  if (!Number.isInteger(value) || value < 1 || value > most)
    throw { field, message: `${what}: a whole number from 1 to ${most.toLocaleString("en")}.` };
  return value;
}
