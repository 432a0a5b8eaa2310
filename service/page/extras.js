// What only some deployments have: layers to choose from, a second judge, and a judge for finals.

import { $, positive, whole } from "./text.js";

export class Extras {
  #workers = [];

  constructor() {
    $("finals").addEventListener("change", () => this.#fold());
  }

  /** Warm workers, as GET /status lists them. */
  know(workers) {
    this.#workers = workers;
  }

  /** Offer what workers of this model (of GET /v1/models; or null) beside this judge's name (null: any) have. */
  offer(model, judge) {
    const held = this.#workers.filter(
      (worker) => worker.model.name === model?.id && (judge === null || worker.judge.name === judge),
    );
    const depths = model?.depths ?? [];
    $("depth").parentElement.hidden = depths.length < 2;
    $("depth").max = $("depth").placeholder = depths.at(-1) ?? "";
    $("second-field").hidden = !held.some((worker) => worker.second_judge);
    $("finals-field").hidden = !held.some((worker) => worker.finals_judge);
    this.#fold();
  }

  /** The fields of a request for what is offered. Throws {field, message} for what is no number. */
  read() {
    const fields = {};
    if (shown("depth") && $("depth").value) fields.depth = whole("depth", "Layers", $("depth").value, $("depth").max);
    if (shown("second") && $("second").checked) fields.rule = "lower_bound";
    if (shown("finals") && $("finals").checked) {
      fields.finals = {};
      if ($("finals_most").value) {
        fields.finals.most = whole("finals.most", "Those who meet", $("finals_most").value, 16);
      }
      if ($("finals_band").value) {
        fields.finals.band = positive("finals_band", "How close: a number above 0.", "finals.band");
      }
    }
    return fields;
  }

  /** Show such fields, of a job's parameters; whether any says more than the default. */
  show({ depth, rule, finals }) {
    $("depth").value = depth ?? "";
    $("second").checked = rule === "lower_bound";
    $("finals").checked = Boolean(finals);
    $("finals_most").value = finals?.most ?? "";
    $("finals_band").value = finals?.band ?? "";
    this.#fold();
    return Boolean(depth || rule === "lower_bound" || finals);
  }

  #fold() {
    $("finals-how").hidden = !$("finals").checked;
  }
}

const shown = (id) => !$(id).closest("[hidden]:not(#more)");
