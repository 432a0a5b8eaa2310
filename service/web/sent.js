// Images that a person has already: dropped on the box or chosen, they are ranked in place of drawn candidates.

import { $, plural } from "./text.js";

const LEAST = 2;
const MOST = 64;

export class Sent {
  #files = [];

  constructor() {
    const box = $("ask");
    box.addEventListener("dragover", (event) => event.preventDefault());
    box.addEventListener("drop", (event) => {
      event.preventDefault();
      this.#take([...event.dataTransfer.files]);
    });
    $("pictures").addEventListener("change", ({ target }) => this.#take([...target.files]));
    $("forget-pictures").addEventListener("click", () => this.#take([]));
  }

  get any() {
    return this.#files.length > 0;
  }

  /** The form of POST /rank. Throws {field, message} for what the server would refuse at once. */
  read(prompt) {
    if (!prompt.trim()) throw { field: "prompt", message: "Say what the images should show." };
    if (this.#files.length < LEAST || this.#files.length > MOST)
      throw { field: "images", message: `Choose ${LEAST} to ${MOST} images, not ${this.#files.length}.` };
    const form = new FormData();
    form.append("prompt", prompt);
    form.append("thumbnails", "true");
    for (const file of this.#files) form.append("images", file, file.name);
    return form;
  }

  #take(files) {
    this.#files = files;
    $("sent").hidden = !this.any;
    $("sent-count").textContent = `${plural(files.length, "image")} to rank by the prompt.`;
    if (!$("ask").classList.contains("busy")) $("go").textContent = this.verb;
    if (!this.any) $("pictures").value = "";
  }

  /** What the button does. */
  get verb() {
    return this.any ? "Rank" : "Generate";
  }
}
