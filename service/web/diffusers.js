// The call that draws a candidate again with plain diffusers: the same one that `bestofn inspect` prints for a file.

// A JSON string is a Python string: the same quotes, the same escapes.
const python = JSON.stringify;
const float = (value) => (Number.isInteger(value) ? `${value}.0` : `${value}`);

/** Python source that makes the image of `seed`. */
export function diffusersCall({ prompt, parameters, model: { name, revision } }, seed) {
  const [[checkpoint, ...loras], [commit]] = [name.split("+lora:"), revision.split("+")];
  const model = { name: checkpoint, revision: commit };
  const hub = /^[0-9a-f]{40}$/.test(model.revision);
  const sprint = hub && model.name.toLowerCase().includes("sprint"); // its pipeline takes no negative prompt
  const call = [
    python(prompt),
    ...(parameters.negative_prompt && !sprint ? [`negative_prompt=${python(parameters.negative_prompt)}`] : []),
    `width=${parameters.width}`,
    `height=${parameters.height}`,
    `num_inference_steps=${parameters.num_inference_steps}`,
    `guidance_scale=${float(parameters.guidance_scale)}`,
    `generator=torch.Generator("cpu").manual_seed(${seed})`,
    "use_resolution_binning=False",
  ];
  if (sprint && parameters.num_inference_steps !== 2) call.push("intermediate_timesteps=None");
  if (!hub) {
    // A checkpoint in a folder may bring call defaults of its own.
    call.push("max_sequence_length=calls.max_sequence_length");
    call.push("complex_human_instruction=list(calls.complex_human_instruction)");
  }
  const lines = call.map((argument) => `    ${argument},`);
  const updates = loras.map((lora) => `pipeline.load_lora_weights(${python(lora)})`);
  const made = [...(hub ? fromHub : fromFolder)(model), ...updates, ...shallower(parameters)];
  return [...made, "image = pipeline(", ...lines, ").images[0]"].join("\n");
}

const shallower = ({ layers }) =>
  layers
    ? [
        "blocks = pipeline.transformer.transformer_blocks",
        `pipeline.transformer.transformer_blocks = torch.nn.ModuleList(blocks[i] for i in [${layers.join(", ")}])`,
      ]
    : [];

const fromHub = ({ name, revision }) => [
  "import torch",
  "from diffusers import DiffusionPipeline",
  "",
  "pipeline = DiffusionPipeline.from_pretrained(",
  `    ${python(name)}, revision="${revision}", dtype=torch.bfloat16`,
  ').to("cuda")',
];

const fromFolder = ({ name, revision }) => [
  "import torch",
  "from bestofn.models.checkpoint import Checkpoint",
  "from diffusers import DiffusionPipeline",
  "",
  `checkpoint = Checkpoint.resolve(${python(name)})  # revision ${revision.replace(/[^\w.-]/g, "?")}`,
  "calls = checkpoint.call_defaults()",
  "pipeline = DiffusionPipeline.from_pretrained(checkpoint.path, dtype=torch.float32)",
];
