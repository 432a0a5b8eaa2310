// The job as the page shows it: heading, progress, who leads and who won. Grid and bracket draw themselves.

import { cost } from "./cost.js";
import { drawCurve } from "./curve.js";
import { ended, matchesOf, mayStop, imagePath } from "./job.js";
import { imageUrl } from "./images.js";
import { $, element, fillPairs, plural, score, seconds, sentence } from "./text.js";
import { fileName } from "./viewer.js";

const PLACES = ["", "first", "second", "third"];

/** Draw everything but grid and bracket. `lost`: the stream broke and is being opened again. `since`: when it began. */
export function drawJob(job, { lost, since }) {
  const { parameters: p } = job;
  const done = ended(job);
  $("job").dataset.status = job.status;
  $("job").setAttribute("aria-busy", !done);
  const drawn = job.status === "succeeded" ? job.candidates.size : job.count;
  $("job-eyebrow").textContent = `Best of ${mayStop(job) ? "at most " : ""}${drawn.toLocaleString("en")}`;
  $("job-prompt").textContent = job.prompt;
  $("job-facts").textContent = facts(job);
  const costs = cost(job);
  $("cost").hidden = costs.length === 0;
  if ($("cost").dataset.said !== `${costs}`) fillPairs($("cost"), costs);
  $("cost").dataset.said = `${costs}`;
  $("warnings").hidden = job.warnings.length === 0;
  $("warnings").replaceChildren(...job.warnings.map((text) => element("li", {}, sentence(text))));
  $("progress").hidden = job.status === "succeeded" && job.candidates.size === job.count;
  $("progress").classList.toggle("lost", lost);
  $("progress-bar").hidden = done;
  if (job.status === "queued") $("progress-bar").removeAttribute("value");
  else $("progress-bar").value = shareOf(job);
  $("progress-text").textContent = stateOf(job, lost);
  $("progress-time").textContent = done || since === null ? "" : seconds((Date.now() - since) / 1000);
  drawLeader(job, done);
  drawWinners(job);
  drawCurve($("curve"), job.curve, drawn);
  if (p.negative_prompt) $("job-facts").append(element("span", {}, ` · without: ${p.negative_prompt}`));
}

/** Title of the page while it shows this job. */
export const titleOf = (job) =>
  [ended(job) ? job.prompt : `${job.judged}/${job.count}`, "bestofn"].filter(Boolean).join(" · ");

/** What goes on, in one sentence. */
export function stateOf(job, lost) {
  if (lost) return "The server does not answer. Trying again…";
  if (job.status === "queued") {
    const place = job.position === null ? "" : `, ${PLACES[job.position] ?? `number ${job.position}`} in the queue`;
    return `Waiting${place}${job.wait === null ? "" : `, about ${seconds(job.wait)} to go`}`;
  }
  const share = `${job.candidates.size} of ${mayStop(job) ? "at most " : ""}${job.count}`;
  if (job.status === "running" && job.finals) {
    const { played, matches } = matchesOf(job.finals);
    return `Finals: ${played} of ${plural(matches, "match", "matches")} played`;
  }
  if (job.status === "running") return job.candidates.size ? `${share} judged` : (job.sent ? "Judging the first images" : "Drawing the first candidates");
  const after = job.candidates.size ? ` after ${share} candidates` : ""; // the server erases those of a canceled job
  if (job.status === "canceled") return `Canceled${after}.`;
  if (job.status === "failed") return `Failed${after}.`;
  if (job.leader === null) return "Ended before a candidate was judged.";
  const { verdict, seed } = job.candidates.get(job.leader);
  const early = job.candidates.size < job.count ? ` after ${share} candidates` : "";
  const won = job.finals ? "won the finals" : "won";
  const which = job.sent ? "" : `, seed ${seed}`;
  return `Done${early}: candidate ${job.leader} ${won} with score ${score(verdict)}${which}.`;
}

/** How far the job is, or its finals, 0 to 1. */
function shareOf({ finals, steps, totalSteps, sent, candidates, count }) {
  if (sent && !finals) return candidates.size / count;
  if (!finals) return steps / totalSteps;
  const { played, matches } = matchesOf(finals);
  return played / matches;
}

function facts({ parameters: p, model, judge, second, sent }) {
  if (sent) return `images of your own · judge ${judge.name}`;
  return [
    `${p.width} × ${p.height}`,
    plural(p.num_inference_steps, "step"),
    `guidance ${p.guidance_scale}`,
    ...(p.depth ? [plural(p.depth, "layer")] : []),
    `model ${model.name}`,
    second ? `judges ${judge.name} and ${second.name}` : `judge ${judge.name}`,
  ].join(" · ");
}

function drawLeader(job, done) {
  const leader = job.candidates.get(job.leader);
  const won = job.images[0];
  $("frame").disabled = !leader;
  $("frame").classList.toggle("won", Boolean(won));
  $("leader-title").textContent = won ? "Winner" : !leader ? "" : done ? "Led when it ended" : "Leads";
  $("score").textContent = leader ? score(leader.verdict) : "";
  $("score-words").textContent = leader ? wordsOf(leader.verdict) : "";
  fillPairs(
    $("leader-pairs"),
    leader
      ? [
          ["Candidate", `${leader.index}`],
          leader.seed === null ? ["File", leader.name ?? ""] : ["Seed", leader.seed],
        ]
      : [],
  );
  $("winner-actions").hidden = !won;
  $("use-seed").hidden = $("remake").hidden = job.sent;
  // Ended before a candidate was judged, or canceled and erased: nothing to show but the reason.
  $("hero").hidden = $("candidates").hidden = done && !leader;
  const kept = done && [...job.candidates.keys()].some((index) => imagePath(job, index));
  $("download-all").hidden = $("download-sheet").hidden = !kept;
  const path = leader ? imagePath(job, leader.index) : null;
  if ($("frame").dataset.path === `${path}`) return;
  $("frame").dataset.path = `${path}`;
  $("frame").setAttribute(
    "aria-label",
    leader ? `${$("leader-title").textContent}: candidate ${leader.index}. Open large` : "No candidate is judged yet",
  );
  $("download").hidden = true; // until the image itself is here: what it had was the small copy
  if (!path) return ($("leader").hidden = true);
  imageUrl(path).then((url) => {
    if ($("frame").dataset.path !== path || !url) return;
    $("leader").hidden = false;
    $("leader").src = url;
    Object.assign($("download"), { hidden: !won, href: url, download: fileName(job, leader, won) });
  });
}

function wordsOf({ answer }) {
  // The score is the judge's probability of yes.
  if (answer === "unsafe") return "the image checker refused it";
  if (answer === "other") return "the judge said neither yes nor no";
  return answer === "yes" ? "probability that it shows the prompt, by the judge" : "probability that it shows the prompt: the judge says no";
}

/** Further winners, if more than one was asked for. */
function drawWinners(job) {
  const others = job.images.slice(1);
  const box = $("winners");
  box.hidden = others.length === 0;
  if (box.dataset.of === `${job.id} ${others.length}`) return;
  box.dataset.of = `${job.id} ${others.length}`;
  box.replaceChildren(
    ...others.map(({ rank, candidate, url, verdict }) => {
      const button = element(
        "button",
        { type: "button", dataset: { index: candidate } },
        element("span", { className: "pixels" }),
        element("small", {}, `${rank} · ${score(verdict)}`),
      );
      button.setAttribute("aria-label", `Rank ${rank}, candidate ${candidate}`);
      imageUrl(url).then((at) => at && button.firstChild.append(element("img", { src: at, alt: "" })));
      return button;
    }),
  );
}
