// Server-sent events over fetch, which unlike EventSource sends a key: parsed, and resumed where they broke off.

const FIRST_PAUSE = 500; // milliseconds
const LONGEST_PAUSE = 10_000;
const SILENCE = 45_000; // three keep-alives of the server

/** Turns text, in whatever pieces it comes, into events {type, data, id}, as the HTML standard says. */
export class EventParser {
  #rest = "";
  #type = "";
  #data = [];
  #id = null;

  push(text) {
    const events = [];
    // A carriage return at the very end may be the first half of a line end.
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length)
          events.push({ type: this.#type || "message", data: this.#data.join("\n"), id: this.#id });
        this.#type = "";
        this.#data = [];
        continue;
      }
      const [, name, value] = /^([^:]*)(?:: ?)?(.*)$/s.exec(line);
      if (name === "event") this.#type = value;
      else if (name === "data") this.#data.push(value);
      else if (name === "id") this.#id = value;
    }
    return events;
  }
}

/**
 * The events of a stream until one of `last` has come, reopened with the id of the last one seen whenever it breaks off.
 *
 * open(lastId, signal) resolves to a response, or throws an error whose `passing` says whether to try again.
 * onLost() reports that it could not be reopened at once or fell silent, onBack() that it goes on.
 */
export async function* follow(
  open,
  { signal, last, onLost = () => {}, onBack = () => {}, pause = sleep, silence = SILENCE },
) {
  let lastId = null;
  for (let failures = 0; ; failures++) {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    signal.addEventListener("abort", stop);
    let timer;
    let silent = false;
    const awake = () => {
      clearTimeout(timer);
      timer = setTimeout(() => ((silent = true), stop()), silence);
    };
    try {
      awake();
      const response = await open(lastId, attempt.signal);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const parser = new EventParser();
      for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
        awake();
        if (failures > 0) onBack();
        failures = 0;
        for (const event of parser.push(piece.value)) {
          lastId = event.id ?? lastId;
          yield event;
          if (last.has(event.type)) return;
        }
      }
    } catch (error) {
      signal.throwIfAborted();
      if (error.passing === false) throw error;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", stop);
      attempt.abort();
    }
    // Proxies end long streams, and Firefox ends those of a page that is left: not worth a word.
    if (failures > 0 || silent) onLost();
    await pause(Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** failures), signal);
  }
}

/** Resolves after `milliseconds`; throws the reason of `signal` as soon as it is aborted. */
export function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
