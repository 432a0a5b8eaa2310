"""Generate with `bestofn.Client`: a progress callback, the winners as files, and what the job cost.

Needs bestofn, without extras, and a server: `bestofn up`, or the address in BESTOFN_SERVER.
"""

import bestofn

PROMPT = "a photo of a red star left of a blue circle"


def show(progress: bestofn.Progress) -> None:
    best = "none" if progress.best is None else f"{progress.best.verdict.p_yes:.3f}"
    print(f"{progress.status}: {progress.judged} of {progress.num_samples} judged, best score {best}")


with bestofn.Client() as client:
    generation = client.generate(PROMPT, num_samples=32, top_k=2, on_progress=show)

for winner in generation.images:
    path = winner.save(f"winner-{winner.rank}.png")
    print(f"rank {winner.rank}: candidate {winner.candidate}, seed {winner.seed}, score {winner.score:.3f}, {path}")
print(f"{len(generation.candidates)} candidates, {generation.usage.transformer_forwards} transformer forwards")
