// Controls of the cost: an effort, a budget, or the user's own candidates, drafts and stop.

import { $, positive, whole } from "./text.js";

const FIELDS = ["num_samples", "effort", "budget", "stop", "draft"];
const MOST = 4096;
const USUAL = "16"; // candidates, where the field is left empty

export class Spending {
  constructor() {
    for (const choice of choices()) choice.addEventListener("change", () => this.#fold());
    for (const choice of quick()) choice.addEventListener("change", () => ($("num_samples").value = ""));
    $("num_samples").addEventListener("input", () => check($("num_samples").value));
    $("num_samples").addEventListener("blur", () => Spending.#counted || sayCount(USUAL));
    for (const name of ["stop", "draft"]) $(name).addEventListener("change", () => this.#fold());
    if ($("num_samples").value) check($("num_samples").value); // written before this ran
  }

  /** The current choice: an input with the name of an effort, `budget` or `own`. */
  static get chosen() {
    return choices().find((choice) => choice.checked);
  }

  static get #counted() {
    const { value, validity } = $("num_samples");
    return quick().some((choice) => choice.checked) || value !== "" || validity.badInput;
  }

  /** Of a request: the fields that say how much is spent. */
  static of(body) {
    return Object.fromEntries(Object.entries(body).filter(([name]) => FIELDS.includes(name)));
  }

  /** These fields of the request. Throws {field, message} for what is no number. */
  read() {
    const choice = Spending.chosen.value;
    if (choice === "budget") {
      const unit = $("budget-unit").value;
      const most = positive("budget", "Say how much the job may cost: a number above 0.");
      return { budget: { [unit]: most } };
    }
    if (choice !== "own") return { effort: choice };
    const count = quick().find((each) => each.checked)?.value ?? $("num_samples").value;
    const fields = { num_samples: whole("num_samples", "Candidates", count, MOST) };
    if ($("stop").checked) {
      const message = "How sure: above 0 and below 100 %. Leave it empty for the most that the judge can be.";
      fields.stop = $("confidence").value ? { confidence: share("confidence", "stop", message, 99.99) } : {};
    }
    if ($("draft").checked) {
      fields.draft = {};
      if ($("draft_steps").value)
        fields.draft.num_inference_steps = whole("draft.num_inference_steps", "Steps", $("draft_steps").value, 100);
      const layers = $("draft_depth");
      if (layers.value && !layers.parentElement.hidden)
        fields.draft.depth = whole("draft.depth", "Layers of a draft", layers.value, layers.max);
      if ($("draft_keep").value)
        fields.draft.keep = share("draft_keep", "draft.keep", "Above 0 and at most 100 %.", 100);
    }
    return fields;
  }

  /** Show such fields, of a request or of a job's parameters. */
  show({ num_samples: count, effort, budget, stop, draft }) {
    const choice = effort ?? (budget ? "budget" : "own");
    for (const each of choices()) each.checked = each.value === choice;
    if (budget) [[$("budget-unit").value, $("budget").value]] = Object.entries(budget);
    if (choice === "own") {
      sayCount(`${count}`);
      $("stop").checked = Boolean(stop);
      $("confidence").value = stop?.confidence ? percent(stop.confidence) : "";
      $("draft").checked = Boolean(draft);
      $("draft_steps").value = draft?.num_inference_steps ?? "";
      $("draft_depth").value = draft?.depth ?? "";
      $("draft_keep").value = draft?.keep ? percent(draft.keep) : "";
    }
    this.#fold();
  }

  /** Only what belongs to the choice is there to be filled in. */
  #fold() {
    const choice = Spending.chosen.value;
    for (const name of ["own-field", "stop-field", "draft-field"]) $(name).hidden = choice !== "own";
    $("budget-field").hidden = choice !== "budget";
    $("spending-note").hidden = choice === "own";
    $("stop-how").hidden = !$("stop").checked;
    $("draft-how").hidden = !$("draft").checked;
  }
}

const choices = () => [...document.getElementsByName("spending")];
const quick = () => [...document.getElementsByName("quick-samples")];
const percent = (value) => Number((100 * value).toPrecision(6));

/** Check the quick choice of this number of candidates, and no other. */
function check(value) {
  for (const choice of quick()) choice.checked = choice.value === value;
}

/** A number of candidates: one of the quick choices, or written next to them. */
function sayCount(value) {
  check(value);
  $("num_samples").value =
    quick().some((choice) => choice.checked) && document.activeElement !== $("num_samples") ? "" : value;
}

/** A share of 1 from a number of percent, at most `most`. */
function share(id, field, message, most) {
  const value = positive(id, message, field);
  if (value > most) throw { field, message };
  return Number((value / 100).toPrecision(6));
}
