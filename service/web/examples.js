// Start view: three example prompts and an empty bracket.

import { entrants, plant } from "./bracket.js";
import { $, element } from "./text.js";

const SHAPES = [
  "a photo of a red star left of a blue circle",
  "a photo of three red circles",
  "a photo of a green square above a yellow heart",
];
const ANYTHING = [
  "a lighthouse on a cliff at dusk, oil painting",
  "two foxes asleep under a birch in the snow",
  "a red bicycle left of a blue door",
];

/** Prompts that the deployed models can draw; `pick(prompt)` is called with the one that is chosen. */
export function drawExamples(models, pick) {
  const prompts = models.every(({ id }) => id === "shapes") ? SHAPES : ANYTHING;
  $("example-list").replaceChildren(
    ...prompts.map((prompt) => {
      const button = element("button", { type: "button" }, prompt);
      button.addEventListener("click", () => pick(prompt));
      return element("li", {}, button);
    }),
  );
}

// In a frame: a tree that is planted by the observer changes the size that it observes.
new ResizeObserver(() => requestAnimationFrame(drawGhost)).observe($("ghost"));

function drawGhost() {
  const width = $("ghost").clientWidth;
  if (width) plant($("ghost"), entrants(width < 540 ? 8 : 16), 0, width);
}
