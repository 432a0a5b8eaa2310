// Controls that only some deployments have: number of layers, second judge, finals.

import { $, positive, whole } from "./text.js";

export class Extras {
  #workers = [];
  #apart = false; // a second judge and one for finals are deployed, but no worker has both

  constructor() {
    for (const name of ["finals", "second"]) $(name).addEventListener("change", () => this.#fold());
  }

  /** Warm workers, as GET /status lists them. */
  know(workers) {
    this.#workers = workers;
  }

  /** Offer what workers of this model (of GET /v1/models; or null) with this judge's name (null: any) have. */
  offer(model, judge) {
    const held = this.#workers.filter(
      (worker) => worker.model.name === model?.id && (judge === null || worker.judge.name === judge),
    );
    const depths = model?.depths ?? [];
    for (const name of ["depth", "draft_depth"]) {
      $(name).parentElement.hidden = depths.length < 2;
      $(name).max = $(name).placeholder = depths.at(-1) ?? "";
    }
    const [second, finals] = ["second_judge", "pairwise_judge"].map((name) => held.filter((worker) => worker[name]));
    $("second-field").hidden = !second.length;
    $("finals-field").hidden = !finals.length;
    this.#apart = second.length > 0 && finals.length > 0 && !second.some((worker) => finals.includes(worker));
    this.#fold();
  }

  /** The fields of a request for what is offered. Throws {field, message} for what is no number. */
  read() {
    const fields = {};
    if (shown("depth") && $("depth").value) fields.depth = whole("depth", "Layers", $("depth").value, $("depth").max);
    if (shown("second") && $("second").checked) fields.rule = "lower_bound";
    if (shown("finals") && $("finals").checked) {
      fields.finals = {};
      if ($("finals_max_entrants").value) {
        fields.finals.max_entrants = whole("finals.max_entrants", "Entrants", $("finals_max_entrants").value, 16);
      }
      if ($("finals_margin").value) {
        fields.finals.margin = positive("finals_margin", "How close: a number above 0.", "finals.margin");
      }
    }
    return fields;
  }

  /** Show such fields, of a job's parameters; whether any says more than the default. */
  show({ depth, rule, finals }) {
    $("depth").value = depth ?? "";
    $("second").checked = rule === "lower_bound";
    $("finals").checked = Boolean(finals);
    $("finals_max_entrants").value = finals?.max_entrants ?? "";
    $("finals_margin").value = finals?.margin ?? "";
    this.#fold();
    return Boolean(depth || rule === "lower_bound" || finals);
  }

  /** Only what goes with the other choices can be chosen; the reason is shown next to it. */
  #fold() {
    const [finals, second] = [$("finals"), $("second")];
    if (this.#apart && finals.checked) second.checked = false;
    for (const [one, other] of [
      [finals, second],
      [second, finals],
    ]) {
      one.disabled = this.#apart && other.checked;
      $(`${one.id}-apart`).hidden = !one.disabled;
    }
    $("finals-how").hidden = !finals.checked;
  }
}

const shown = (id) => !$(id).closest("[hidden]:not(#more)");
