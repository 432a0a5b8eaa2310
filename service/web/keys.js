// The dialog for the API key of a server that wants one.

import { key } from "./api.js";
import { $ } from "./text.js";

let waiting = null; // what to do once there is a key

/** Ask for a key and say why; `then()` goes on once there is one. */
export function askForKey(why, then) {
  waiting = then;
  $("key-button").hidden = false;
  $("key-note").textContent = why;
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

/** The button that changes a key which is set; `changed()` is called when it was. */
export function offerKey(changed) {
  $("key-button").hidden = key.get() === null;
  $("key-button").addEventListener("click", () => askForKey("It stays in this browser.", changed));
  $("key-forget").addEventListener("click", () => {
    key.set(null);
    $("key-dialog").close();
  });
  $("key-form").addEventListener("submit", () => {
    key.set($("key").value.trim());
    $("key").value = "";
    waiting();
  });
}
