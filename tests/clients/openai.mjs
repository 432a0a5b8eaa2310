// The openai package: an image as base64, as an address, the models, and an error's fields.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "any" });
const models = await client.models.list();
const made = await client.images.generate({ model: models.data[0].id, prompt: "a red star", n: 2, num_samples: 4 });
const byUrl = await client.images.generate({ prompt: "a red star", response_format: "url", size: "auto" });
const picture = await fetch(byUrl.data[0].url);
const refused = await client.images.generate({ prompt: "a red star", size: "7x7" }).catch((error) => error);
console.log(JSON.stringify([
  made.data.map((image) => image.b64_json.slice(0, 5)), picture.headers.get("content-type"), refused.status, refused.param,
]));
