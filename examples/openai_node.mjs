// Generate with the openai package of npm, and show the best so far while candidates are drawn.
//
// Needs Node 20, `npm install openai` and a server: the address in BESTOFN_SERVER, else port 8000.

import { writeFile } from "node:fs/promises";
import OpenAI from "openai";

const server = (process.env.BESTOFN_SERVER || "http://127.0.0.1:8000").replace(/\/$/, "");
const client = new OpenAI({ baseURL: `${server}/v1`, apiKey: process.env.BESTOFN_API_KEY ?? "unused" });

const stream = await client.images.generate({
  prompt: "a photo of a red star left of a blue circle",
  quality: "xhigh", // candidates: low 4, medium 16, high 32, xhigh 64, max 128
  stream: true,
  partial_images: 2,
  seed: 7, // any field of POST /generate
});
for await (const event of stream) {
  if (event.type === "image_generation.partial_image") {
    console.log(`best of ${event.judged}: candidate ${event.candidate}`); // its image: event.b64_json
  } else if (event.type === "image_generation.completed") {
    await writeFile("openai-node.png", Buffer.from(event.b64_json, "base64"));
    console.log(`winner: seed ${event.data[0].seed}, ${event.usage.output_tokens} tokens, openai-node.png`);
  }
}

try {
  await client.images.generate({ prompt: "a photo of a ring", n: 99 });
} catch (error) {
  console.log(`refused: ${error.message}`);
}
