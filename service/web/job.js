// State of a job, built from its events; no access to the page.

/** Events after which nothing follows. */
export const LAST = new Set(["result", "problem"]);

/** A job from its JobResult, as POST /generate and GET /jobs/{id} return it. */
export function jobOf(result) {
  const job = {
    id: result.id,
    prompt: result.prompt,
    parameters: result.parameters,
    model: result.model,
    judge: result.judge,
    second: result.second_judge, // null: one judge decides
    count: result.parameters.num_samples,
    sent: !("num_inference_steps" in result.parameters), // its images came from the caller, and are judged alone
    status: result.status,
    position: null,
    wait: null,
    judged: 0,
    steps: 0,
    totalSteps: result.parameters.num_samples * result.parameters.num_inference_steps,
    candidates: new Map(), // index -> {index, seed, verdict, thumbnail, rank}
    curve: [], // [candidates judged, best p_yes so far]
    bracket: [], // [round][place] -> {a, b, winner}
    finals: null, // {judge, rounds}, and `entrants` while they are played
    leader: null, // index
    images: [],
    warnings: result.warnings,
    error: null,
    plan: result.plan, // what an effort or a budget chose
    usage: null, // the bill, and why and how sure it ended: once it has
    stopped: null,
    confidence: null,
    calibrated: null,
    counted: new Set(), // indices of the candidates of the result
    next: null,
  };
  standAt(job, result);
  return job;
}

/** Take an event {type, data} into account. */
export function apply(job, { type, data }) {
  if (type === "queued") {
    job.position = data.position;
    job.wait = data.estimated_wait_seconds;
  } else if (type === "started") {
    job.status = "running";
  } else if (type === "progress") {
    job.status = "running";
    standing(job, data);
  } else if (type === "candidate") {
    judged(job, data);
  } else if (type === "match") {
    (job.bracket[data.round] ??= [])[data.place] = { a: data.a, b: data.b, winner: data.winner };
  } else if (type === "finals") {
    job.finals = data;
  } else if (type === "snapshot" || type === "result") {
    standAt(job, data);
    if (type === "result") count(job, data);
  } else if (type === "problem") {
    job.status = data.code === "job_canceled" ? "canceled" : "failed";
    job.error = data.detail;
  }
}

/** A further page of the result. */
export function append(job, page) {
  for (const candidate of page.candidates) judged(job, candidate);
  page.bracket.forEach((matches, round) => (job.bracket[round] ??= []).push(...matches));
  job.next = page.next;
  count(job, page);
}

export const ended = (job) => ["succeeded", "failed", "canceled"].includes(job.status);

/** Whether it may end before its last candidate. */
export const mayStop = (job) => !ended(job) && Boolean(job.parameters.stop);

/** Of finals: {played, matches}. */
export function matchesOf({ entrants, rounds }) {
  const played = rounds.flat().filter((match) => match.b !== null).length;
  return { played, matches: entrants ? entrants.length - 1 : played };
}

/** The image of a candidate: the full one of a winner, else its thumbnail, else null. */
export function imagePath(job, index) {
  const winner = job.images.find((image) => image.candidate === index);
  return winner?.url ?? job.candidates.get(index)?.thumbnail ?? null;
}

/** Indices of the judged candidates: best first, or in the order of their seeds. */
export function ordered(job, bestFirst) {
  const known = [...job.candidates.values()];
  const place = (c) => c.rank ?? Infinity;
  if (bestFirst) known.sort((a, b) => place(a) - place(b) || better(b, a) - better(a, b) || a.index - b.index);
  else known.sort((a, b) => a.index - b.index);
  return known.map((candidate) => candidate.index);
}

function standAt(job, result) {
  job.status = result.status;
  job.warnings = result.warnings;
  job.images = result.images;
  job.error = result.error;
  job.finals = result.finals ?? result.progress?.finals ?? null;
  job.next = result.next;
  job.usage = result.usage;
  job.stopped = result.stopped;
  job.confidence = result.confidence;
  job.calibrated = result.calibrated;
  for (const candidate of result.candidates) judged(job, candidate);
  if (result.bracket.length) job.bracket = result.bracket;
  if (result.progress) standing(job, result.progress);
  if (result.images.length) job.leader = result.images[0].candidate;
}

// The result decides: it leaves out candidates that ran ahead of an early stop.
function count(job, { candidates }) {
  for (const { index } of candidates) job.counted.add(index);
  if (job.next !== null || job.counted.size === job.candidates.size) return;
  for (const index of [...job.candidates.keys()]) if (!job.counted.has(index)) job.candidates.delete(index);
  let best = null;
  job.curve = ordered(job, false).map((index, i) => {
    const candidate = job.candidates.get(index);
    if (!best || better(candidate, best)) best = candidate;
    return [i + 1, best.verdict.p_yes ?? 0];
  });
  job.judged = job.candidates.size;
}

function standing(job, progress) {
  job.judged = Math.max(progress.judged, job.candidates.size);
  job.steps = progress.steps;
  job.totalSteps = progress.total_steps;
  // The server knows the rule; it may have a leader whose own event is still to come.
  if (progress.best && job.candidates.has(progress.best.index)) job.leader = progress.best.index;
}

function judged(job, candidate) {
  const known = job.candidates.get(candidate.index);
  job.candidates.set(candidate.index, { ...known, ...candidate });
  if (known && known.solved_in_full === candidate.solved_in_full) return; // promoted candidates are judged twice: as a draft, and in full
  job.judged = Math.max(job.judged, job.candidates.size);
  const leader = job.candidates.get(job.leader);
  if (!leader || better(candidate, leader)) job.leader = candidate.index;
  const best = job.candidates.get(job.leader).verdict.p_yes ?? 0; // of who leads, whatever the judge's answer
  if (known) job.curve.at(-1)[1] = best;
  else job.curve.push([job.candidates.size, best]);
}

// In full before drafts, yes and no before any other word, then by score: the server's order but for ties, until it
// says the ranks.
function better(a, b) {
  const place = ({ verdict, solved_in_full }) =>
    (solved_in_full === false ? 0 : 2) + (verdict.answer === "other" || verdict.p_yes === null ? -1 : verdict.p_yes);
  return place(a) > place(b);
}
