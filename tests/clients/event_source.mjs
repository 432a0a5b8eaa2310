// The eventsource package: events up to the result, and no reconnection for ever after it.
import { EventSource } from "eventsource";

const server = process.argv[2];
const { id } = await fetch(`${server}/generate`, {
  method: "POST",
  headers: { "Content-Type": "application/json", Prefer: "respond-async" },
  body: JSON.stringify({ prompt: "a red star", num_samples: 4 }),
}).then((answer) => answer.json());
const seen = [];
const source = new EventSource(`${server}/jobs/${id}/events`);
source.addEventListener("result", (event) => seen.push(JSON.parse(event.data).status));
await new Promise((resolve) => {
  source.onerror = () => source.readyState === EventSource.CLOSED && resolve();  // the server closed, it came again: 204
});
console.log(JSON.stringify(seen));
