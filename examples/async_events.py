"""Follow two jobs at once with `bestofn.AsyncClient`: submit, read the event streams, fetch the winners.

Needs bestofn, without extras, and a server: `bestofn up`, or the address in BESTOFN_SERVER.
"""

import asyncio

import bestofn

PROMPTS = ("a photo of three red circles", "a photo of a green heart")


async def follow(client: bestofn.AsyncClient, prompt: str) -> None:
    job = await client.submit(prompt, num_samples=16)
    async for event in client.events(job.id):
        match event.type:
            case "queued":
                print(f"{prompt}: position {event.position} in the queue")
            case "candidate":
                print(f"{prompt}: candidate {event.index}, answer {event.verdict.answer}")
            case "match":
                print(f"{prompt}: round {event.round}, {event.a} against {event.b}: {event.winner} wins")
            case "problem":
                raise event.error
    generation = await client.wait(job.id)
    path = generation.save(f"{prompt.replace(' ', '-')}.png")
    print(f"{prompt}: seed {generation.seed}, {path}")


async def main() -> None:
    async with bestofn.AsyncClient() as client, asyncio.TaskGroup() as tasks:
        for prompt in PROMPTS:
            tasks.create_task(follow(client, prompt))


asyncio.run(main())
