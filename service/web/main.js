// The page: a prompt becomes a job, the job's events become images, and the address remembers which job is shown.

import { call, json, Problem, readJson } from "./api.js";
import { BracketView } from "./bracket.js";
import { save, sheetOf, zipOf } from "./download.js";
import { drawExamples } from "./examples.js";
import { FinalsView } from "./finals.js";
import { Form, inOurWords } from "./form.js";
import { Grid } from "./grid.js";
import { drawHistory, forgetAll, recall, remember } from "./history.js";
import { append, apply, ended, jobOf, LAST, ordered } from "./job.js";
import { askForKey, offerKey } from "./keys.js";
import { forget, miniature } from "./images.js";
import { Sent } from "./sent.js";
import { drawJob, stateOf, titleOf } from "./show.js";
import { Spending } from "./spending.js";
import { follow, sleep } from "./stream.js";
import { $, onPick, score, sentence } from "./text.js";
import { nameOf, Viewer } from "./viewer.js";

const ADVICE = {
  401: "This server wants a key: set it with the button “API key” above.",
  403: "Open the page under the server's own address.",
  429: "The server has enough to do at the moment.",
  500: "Draw again; if it fails again, the log of the server or its worker says why.",
};

const form = new Form();
const sent = new Sent();
// Closing the viewer focuses the tile of the last image; the browser restores the focus for other openers.
const viewer = new Viewer(
  (index) => $("grid").contains(document.activeElement) && grid.focus(index),
  useSeed,
  drawInFull,
  (model) => form.pipelineOf(model),
);
const open = (index) => viewer.open(job, index, ordered(job, bestFirst));
const grid = new Grid(open);
const bracket = new BracketView(open);
const finals = new FinalsView(open);

let job = null;
let doing = null; // AbortController of what goes on: a submission, or the following of a job
let bestFirst = false;
let lost = false;
let since = null; // when the job was submitted, if this page did it
let drawing = 0;

// -- what the person does ---------------------------------------------------------------------------------------------

async function generate() {
  let body;
  try {
    body = sent.any ? sent.read($("prompt").value) : form.read();
  } catch ({ field, message }) {
    return form.complain(message, field);
  }
  form.complain(null);
  const signal = begin();
  // The same key for every attempt: an answer that got lost does not draw the images twice.
  const headers = { Prefer: "respond-async", "Idempotency-Key": hex(crypto.getRandomValues(new Uint8Array(16))) };
  const submit = async () => {
    const result = await json(sent.any ? "rank" : "generate", { method: "POST", body, headers, signal });
    form.complain(null);
    remember(result.id, {
      prompt: result.prompt,
      count: result.parameters.num_samples,
      status: "running",
      parameters: kept(result),
      asked: sent.any ? undefined : Spending.of(body),
    });
    since = Date.now();
    history.pushState(null, "", `#job=${result.id}`);
    await watch(result, signal);
  };
  await patiently(submit, signal, (error) => refused(error, generate));
}

/** Run `attempt` again while the server has no answer or no room, until `signal`; other errors go to `fail`. */
async function patiently(attempt, signal, fail) {
  for (let failures = 0; !signal.aborted; failures++) {
    try {
      return await attempt();
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Problem) || !error.passing) return fail(error);
      const pause = error.retryAfter ?? Math.min(10, 2 ** failures);
      form.complain(`${plain(error)} Trying again in ${Math.ceil(pause)} s.`);
      await sleep(1000 * pause, signal).catch(() => {});
    }
  }
}

async function cancel() {
  if (!job || ended(job)) {
    form.complain(null);
    return idle();
  }
  say("Canceling");
  try {
    await call(`jobs/${job.id}`, { method: "DELETE" }); // its stream brings the rest
  } catch (error) {
    form.complain(plain(error));
  }
}

/** Fill in a seed, and keep it. */
function useSeed(seed) {
  viewer.close();
  form.useSeed(seed);
  $("prompt").focus();
}

/** Draw one candidate of the job alone: as a winner its image is kept whole. */
function drawInFull(seed) {
  useSeed(seed);
  form.one();
  generate();
}

/** Make a file of all candidates, and keep it; its button waits meanwhile. */
async function download(button, ending, make) {
  button.disabled = true;
  say("Preparing the download");
  try {
    save(await make(job), `${nameOf(job)}-${ending}`);
    say("The download is ready");
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    form.complain(plain(error));
  } finally {
    button.disabled = false;
  }
}

/** Show a job that exists already: after a reload, from the history, or from a link. */
async function reopen(id) {
  const signal = begin();
  since = null;
  const read = async () => watch(await json(`jobs/${id}?limit=1`, { signal }), signal);
  await patiently(read, signal, (error) =>
    [404, 410].includes(error.status) ? expired(id) : refused(error, () => reopen(id)),
  );
}

function expired(id) {
  idle();
  leave();
  const entry = recall(id);
  const drawn = entry?.parameters.num_inference_steps;
  if (drawn) {
    form.show(entry.parameters);
    form.lockSeed();
  }
  const known = drawn
    ? " Its parameters are filled in above, with its seed: Generate draws the same images again."
    : "";
  form.complain(`This job is no longer on the server.${known}`);
  $("go").focus();
}

// -- following a job --------------------------------------------------------------------------------------------------

async function watch(result, signal) {
  leave();
  const known = recall(result.id);
  // The server erases the prompt of a job that was canceled; this browser may have it.
  result.parameters.prompt = result.prompt ||= known?.prompt ?? "";
  // Events start with the first one, also for a job that has ended.
  const untold = { status: "queued", images: [], candidates: [], bracket: [], finals: null, progress: null, usage: null };
  job = jobOf({ ...result, ...untold });
  if (job.sent) $("prompt").value = job.prompt;
  else form.show(kept(result), known?.asked);
  bestFirst = false;
  busy(true);
  $("examples").hidden = true;
  $("job").hidden = false;
  drawHistory(pick, job.id);
  draw();
  say(stateOf(job, false));
  if (!form.knows) learn(); // the first worker came up after the page
  const events = follow((lastId, stop) => listen(result.id, lastId, stop), {
    signal,
    last: LAST,
    onLost: () => ((lost = true), draw()),
    onBack: () => ((lost = false), draw()),
  });
  let quarters = 0;
  for await (const { type, data } of events) {
    const before = job.status;
    apply(job, { type, data: readJson(data) });
    const quarter = Math.floor((4 * job.candidates.size) / job.count);
    if (job.status !== before || quarter > quarters || type === "finals") say(stateOf(job, false));
    quarters = quarter;
    if (type === "result") bestFirst = true;
    draw();
  }
  while (job.next !== null) append(job, await json(job.next, { signal }));
  await finish(signal);
}

const listen = (id, lastId, signal) =>
  call(`jobs/${id}/events`, {
    headers: { Accept: "text/event-stream", ...(lastId === null ? {} : { "Last-Event-ID": lastId }) },
    signal,
  });

async function finish(signal) {
  const done = job;
  lost = false;
  busy(false);
  if (done.status === "failed") form.complain(`The job failed: ${sentence(done.error ?? "")} ${ADVICE[500]}`);
  draw();
  say(stateOf(done, false));
  const words = { status: done.status, count: done.status === "succeeded" ? done.candidates.size : done.count };
  if (done.images.length) {
    words.score = score(done.images[0].verdict);
    words.thumbnail = await miniature(done.images[0].url).catch(() => null);
  }
  if (signal.aborted) return;
  if (recall(done.id)) remember(done.id, words);
  drawHistory(pick, done.id);
}

function draw() {
  if (job) document.title = titleOf(job); // at once: a tab in the background gets no frames
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    if (!job) return;
    drawJob(job, { lost, since });
    $("by-rank").setAttribute("aria-pressed", bestFirst);
    $("by-index").setAttribute("aria-pressed", !bestFirst);
    grid.draw(job, bestFirst);
    bracket.draw(job);
    finals.draw(job);
  });
}

// -- what the page is at ----------------------------------------------------------------------------------------------

/** Ends what was going on and starts something new, which ends with the signal. */
function begin() {
  doing?.abort();
  doing = new AbortController();
  busy(true);
  return doing.signal;
}

function busy(on) {
  $("go").textContent = on ? "Cancel" : sent.verb;
  $("go").title = on ? "Esc" : "Enter";
  $("ask").classList.toggle("busy", on);
}

function idle() {
  doing?.abort();
  busy(false);
}

/** Nothing is shown but the box. */
function leave() {
  viewer.close();
  forget();
  grid.clear();
  bracket.clear();
  job = null;
  lost = false;
  $("job").hidden = true;
  $("examples").hidden = false;
  document.title = "bestofn";
}

function refused(error, again) {
  if (!(error instanceof Problem)) throw error;
  idle();
  if (error.status === 401) askForKey(sentence(error.message), again);
  form.complain(plain(error), error.field);
}

const plain = (error) => `${sentence(inOurWords(error.message, error.field))} ${ADVICE[error.status] ?? ""}`.trim();
const say = (text) => $("announcer").textContent === text || ($("announcer").textContent = text); // each text once
const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const kept = ({ parameters, model, judge }) => ({ ...parameters, model: model.name, judge: judge.name });
// Whether an input method takes this key. Safari's last one comes after the composition: only its code says so.
const composing = ({ isComposing, keyCode }) => isComposing || keyCode === 229;
const hashJob = () => /^#job=([0-9a-f]{1,64})$/.exec(location.hash)?.[1] ?? null;

function pick(entry) {
  if (hashJob() !== entry.id) location.hash = `job=${entry.id}`;
  else reopen(entry.id);
  scrollTo({ top: 0 });
}

function route() {
  const id = hashJob();
  if (id !== null) return reopen(id);
  idle();
  leave();
  drawHistory(pick, null);
}

async function learn() {
  let [models, workers] = [[], []];
  try {
    [{ data: models }, { workers }] = await Promise.all([json("v1/models"), json("status")]);
  } catch (error) {
    if (error.status === 401) refused(error, start);
    else form.complain(plain(error));
  }
  form.know(models, workers);
  drawExamples(models, (prompt) => {
    $("prompt").value = prompt;
    generate();
  });
}

async function start() {
  form.complain(null);
  drawHistory(pick, null);
  const before = doing;
  await learn();
  if (doing !== before) return; // a user was faster than the server: a job was picked or submitted
  if (hashJob() !== null) route();
  // On a phone it would raise the keyboard; and a user who writes elsewhere keeps the focus.
  else if (document.activeElement === document.body && matchMedia("(pointer: fine)").matches) $("prompt").focus();
}

// -- wiring -----------------------------------------------------------------------------------------------------------

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("ask").classList.contains("busy")) cancel();
  else generate();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || composing(event)) return;
  event.preventDefault();
  if (!$("ask").classList.contains("busy")) generate();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || composing(event) || document.querySelector("dialog[open]")) return;
  if ($("ask").classList.contains("busy")) cancel();
});
$("by-rank").addEventListener("click", () => ((bestFirst = true), draw()));
$("by-index").addEventListener("click", () => ((bestFirst = false), draw()));
$("frame").addEventListener("click", () => open(job.leader));
$("remake").addEventListener("click", () => open(job.leader));
$("use-seed").addEventListener("click", () => useSeed(job.candidates.get(job.leader).seed));
$("all").addEventListener("click", () => ((grid.all = true), draw()));
$("download-all").addEventListener("click", ({ target }) => download(target, "all.zip", zipOf));
$("download-sheet").addEventListener("click", ({ target }) =>
  download(target, "sheet.png", (job) => sheetOf(job, $("job-facts").textContent)),
);
onPick($("winners"), open);
$("clear-history").addEventListener("click", () => {
  forgetAll();
  drawHistory(pick, null);
});
addEventListener("hashchange", route);
addEventListener("storage", () => drawHistory(pick, job?.id ?? null)); // by another tab
new ResizeObserver(() => draw()).observe($("bracket"));
setInterval(() => job && !ended(job) && draw(), 1000);

offerKey(start);
start();
