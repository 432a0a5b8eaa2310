// The call that draws a candidate again with plain diffusers.

// A JSON string is a Python string: the same quotes, the same escapes.
const python = JSON.stringify;
const float = (value) => (Number.isInteger(value) ? `${value}.0` : `${value}`);

/** Python source that makes the picture of `seed`; `extras` are further arguments of the checkpoint, name -> source. */
export function diffusersCall({ prompt, parameters, model }, seed, extras = {}) {
  const given = {
    negative_prompt: parameters.negative_prompt ? python(parameters.negative_prompt) : null,
    height: parameters.height,
    width: parameters.width,
    num_inference_steps: parameters.num_inference_steps,
    guidance_scale: float(parameters.guidance_scale),
    ...extras,
    generator: `torch.Generator("cpu").manual_seed(${seed})`,
    use_resolution_binning: "False",
  };
  const lines = Object.entries(given).flatMap(([name, value]) => (value === null ? [] : [`    ${name}=${value},`]));
  return [
    "import torch",
    "from diffusers import SanaPipeline",
    "",
    load(model),
    "image = pipeline(",
    `    ${python(prompt)},`,
    ...lines,
    ").images[0]",
  ].join("\n");
}

function load({ name, revision }) {
  if (name === "shapes") return `pipeline = SanaPipeline.from_pretrained("models/weights/shapes")`; // in a checkout of this project
  if (name.includes("/"))
    return `pipeline = SanaPipeline.from_pretrained(${python(name)}, revision=${python(revision)})`;
  return `pipeline = SanaPipeline.from_pretrained(${python(name)})  # the folder, revision ${revision}`;
}
