// Texts for a job's planned cost, its actual cost, and why it ended.

import { plural, seconds } from "./text.js";

/** Pairs of a term and its text, for the job's present state. */
export function cost(job) {
  const { plan, usage } = job;
  const pairs = [];
  if (plan) {
    pairs.push(["Plan", strategy(plan)]);
    const right = `${percent(plan.score_on_shapes)} right on the shapes benchmark`;
    const most = plan.stop ? `, at most ${number.format(plan.at_most_tflops)}` : "";
    pairs.push(["Expected", `About ${tflop(plan.expected_tflops)}${most}; ${right}`]);
  }
  if (usage) pairs.push(["Used", bill(usage)]);
  if (job.status === "succeeded" && usage) pairs.push(["Ended", ending(job)]);
  return pairs;
}

/** Candidates, drafts and stop of a plan or a job's parameters. */
export function strategy({ num_samples: count, draft, stop }) {
  const parts = [stop ? `At most ${plural(count, "candidate")}` : plural(count, "candidate")];
  if (draft) parts.push(`drafts of ${draftOf(draft)}, the best ${percent(draft.keep)} in full`);
  if (stop) parts.push(`until the judge is ${percent(stop.confidence)} sure`);
  return parts.join(", ");
}

/** How a draft is drawn. */
export const draftOf = ({ num_inference_steps: steps, depth }) =>
  plural(steps, "step") + (depth ? ` and ${plural(depth, "layer")}` : "");

function bill({ tflops, seconds: stages, discarded_forwards: dropped }) {
  const time = Object.values(stages).reduce((sum, each) => sum + each, 0);
  const ahead = dropped ? `, and ${plural(dropped, "forward")} that ran ahead for nothing` : "";
  return `${tflop(tflops)}, ${time < 9.5 ? `${time.toFixed(1)} s` : seconds(time)} of device time${ahead}`;
}

function ending({ stopped, confidence, calibrated, candidates }) {
  const count = plural(candidates.size, "candidate");
  const word = calibrated ? "" : " by the judge's own word";
  const sure = confidence === null ? "" : `, ${percent(confidence)} sure of the winner${word}`;
  if (stopped === "confident") return `After ${count}: enough${sure}`;
  if (stopped === "patience") return `After ${count}: none was right, more would hardly help`;
  if (stopped === "deadline") return `After ${count}: out of time${sure}`;
  return `${candidates.size === 1 ? "The candidate is" : `All ${count} are`} judged${sure}`;
}

const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const tflop = (value) => `${number.format(value)}\u00a0TFLOP`;
const percent = (share) => `${number.format(100 * share)}\u00a0%`;
