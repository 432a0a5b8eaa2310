// The client that hey-api generates from /openapi.json, and the types of openapi-typescript.
import { client } from "./hey/client.gen.js";
import { generate, listModels } from "./hey/sdk.gen.js";
import type { components } from "./types.js";

declare const process: { argv: string[] };

client.setConfig({ baseUrl: process.argv[2]! });
const made = await generate({ body: { prompt: "a red star", num_samples: 4 } });
const job = made.data as components["schemas"]["JobResult"];
const models = await listModels();
console.log(JSON.stringify([job.status, job.candidates?.length, models.data?.data.map((model) => model.id)]));
