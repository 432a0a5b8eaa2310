// Vercel's AI SDK, through its provider for OpenAI.
import { createOpenAI } from "@ai-sdk/openai";
import { generateImage } from "ai";

const provider = createOpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "any" });
const { models } = await fetch(`${process.argv[2]}/v1/models`).then((answer) => answer.json()).then((list) => ({ models: list.data }));
const { images } = await generateImage({ model: provider.image(models[0].id), prompt: "a red star", n: 2 });
console.log(JSON.stringify(images.map((image) => image.mediaType)));
