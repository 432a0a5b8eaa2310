// The call that draws a candidate again with plain diffusers: the same one that `bestofn inspect` prints for a file.

// A JSON string is a Python string: the same quotes, the same escapes.
const python = JSON.stringify;
const float = (value) => (Number.isInteger(value) ? `${value}.0` : `${value}`);
const PLAIN = { name: "DiffusionPipeline", dtype: "bfloat16" }; // of SANA from the hub
const literal = (value) => ({ true: "True", false: "False" })[value] ?? `${value}`;

/** Python source that makes the image of `seed`; `pipeline` of GET /v1/models is null for SANA. */
export function diffusersCall({ prompt, parameters, model: { name, revision } }, seed, pipeline) {
  const [[checkpoint, ...loras], [commit]] = [name.split("+lora:"), revision.split("+")];
  const model = { name: checkpoint, revision: commit };
  const hub = /^[0-9a-f]{40}$/.test(model.revision);
  const load = pipeline || hub ? loaded(model, pipeline ?? PLAIN, hub) : fromFolder(model);
  const call = [
    python(prompt),
    `width=${parameters.width}`,
    `height=${parameters.height}`,
    `num_inference_steps=${parameters.num_inference_steps}`,
    `generator=torch.Generator("cpu").manual_seed(${seed})`,
    ...(pipeline ? ofPipeline(parameters, pipeline) : ofSana(parameters, model, hub)),
  ];
  const lines = call.map((argument) => `    ${argument},`);
  const updates = loras.map((lora) => `pipeline.load_lora_weights(${python(lora)})`);
  return [...load, ...updates, ...shallower(parameters), "image = pipeline(", ...lines, ").images[0]"].join("\n");
}

function ofSana({ negative_prompt, num_inference_steps, guidance_scale }, { name }, hub) {
  const sprint = hub && name.toLowerCase().includes("sprint"); // its pipeline takes no negative prompt
  return [
    `guidance_scale=${float(guidance_scale)}`,
    ...(negative_prompt && !sprint ? [`negative_prompt=${python(negative_prompt)}`] : []),
    "use_resolution_binning=False",
    ...(sprint && num_inference_steps !== 2 ? ["intermediate_timesteps=None"] : []),
    // A checkpoint in a folder may bring call defaults of its own.
    ...(hub ? [] : ["max_sequence_length=calls.max_sequence_length"]),
    ...(hub ? [] : ["complex_human_instruction=list(calls.complex_human_instruction)"]),
  ];
}

function ofPipeline({ negative_prompt, guidance_scale }, { guidance, reads_negative, arguments: further }) {
  const negative = negative_prompt || (guidance === "true_cfg_scale" ? " " : "");
  return [
    ...(guidance ? [`${guidance}=${float(guidance_scale)}`] : []),
    ...(negative && reads_negative ? [`negative_prompt=${python(negative)}`] : []),
    ...Object.entries(further).map(([name, value]) => `${name}=${literal(value)}`),
  ];
}

const shallower = ({ layers }) =>
  layers
    ? [
        "blocks = pipeline.transformer.transformer_blocks",
        `pipeline.transformer.transformer_blocks = torch.nn.ModuleList(blocks[i] for i in [${layers.join(", ")}])`,
      ]
    : [];

const loaded = ({ name, revision }, { name: kind, dtype }, hub) => [
  "import torch",
  `from diffusers import ${kind}`,
  "",
  ...(hub ? [] : [`# The folder of revision ${plain(revision)}`]),
  `pipeline = ${kind}.from_pretrained(`,
  `    ${python(name)}${hub ? `, revision="${revision}"` : ""}, dtype=torch.${dtype}`,
  dtype === "float32" ? ")" : ').to("cuda")',
];

const fromFolder = ({ name, revision }) => [
  "import torch",
  "from bestofn.models.checkpoint import Checkpoint",
  "from diffusers import DiffusionPipeline",
  "",
  `checkpoint = Checkpoint.resolve(${python(name)})  # revision ${plain(revision)}`,
  "calls = checkpoint.call_defaults()",
  "pipeline = DiffusionPipeline.from_pretrained(checkpoint.path, dtype=torch.float32)",
];

const plain = (revision) => revision.replace(/[^\w.-]/g, "?");
