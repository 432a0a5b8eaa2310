// Calls to this server: the key goes along where one is set, and every refusal is a Problem in plain words.

const KEY = "bestofn.key";

let kept = null; // the key of this page, where the browser does not store it

export const key = {
  get: () => kept ?? stored(() => localStorage.getItem(KEY)) ?? null,
  set: (value) => {
    const done = stored(() => (value ? localStorage.setItem(KEY, value) : localStorage.removeItem(KEY), true));
    kept = done ? null : value || null;
  },
};

/** The result of `work` on the browser's storage; undefined where it is forbidden or full. */
function stored(work) {
  try {
    return work();
  } catch {
    return undefined;
  }
}

/** What the server said it will not do (RFC 9457), or that it said nothing: then the status is 0. */
export class Problem extends Error {
  constructor({ status = 0, code = "unreachable", detail, field = null, retry_after: retryAfter = null }) {
    super(detail);
    Object.assign(this, { status, code, field, retryAfter });
  }

  /** Whether the same call may succeed later without a change. */
  get passing() {
    return [0, 429, 502, 503, 504].includes(this.status);
  }
}

// Relative to the page, so that it works behind a path prefix too. Addresses of the server may begin with a public one.
export const address = (path) =>
  new URL(path.replace(/^.*\/(?=jobs\/)|^\//, ""), document.baseURI.replace(/[?#].*$/, ""));

/** The response of a call. Throws Problem; throws AbortError if `signal` ends it. */
export async function call(path, { method = "GET", body, headers = {}, signal } = {}) {
  const sent = { Accept: "application/json", ...headers };
  if (key.get()) sent.Authorization = `Bearer ${key.get()}`;
  const form = body instanceof FormData; // the browser writes its type
  if (body !== undefined && !form) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(address(path), { method, body: form ? body : body && writeJson(body), headers: sent, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ detail: "the server does not answer" });
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

export const json = async (path, options) => readJson(await (await call(path, options)).text());

async function problemOf(response) {
  const { status } = response;
  try {
    const said = JSON.parse(await response.text());
    return new Problem({ ...said, status, detail: said.detail ?? said.error.message }); // under /v1: OpenAI's form
  } catch {
    // A proxy in between answers in its own words.
    return new Problem({ status, code: "unknown", detail: `the server answered ${status}` });
  }
}

// Seeds go up to 2**63, which a JavaScript number cannot hold: they are text on this side. Quotes inside strings are
// escaped in JSON, so that no prompt can look like a member named seed.
export const readJson = (text) => JSON.parse(text.replace(/"seed":\s*(\d+)/g, '"seed":"$1"'));
export const writeJson = (value) => JSON.stringify(value).replace(/"seed":"(\d+)"/g, '"seed":$1');
