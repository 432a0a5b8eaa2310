"""Options that several commands share: where the API and the queue are, and what draws and judges."""

from typing import Annotated

import typer

Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(min=0, max=65_535, help="0: a free one.", show_default="8000")]
RedisUrl = Annotated[str | None, typer.Option(help="The queue's server.", show_default="of `bestofn up`")]
AllowUnauthenticated = Annotated[
    bool, typer.Option("--allow-unauthenticated", help="Let other machines call without a key.")
]
Devices = Annotated[str | None, typer.Option(help="all, cuda, cpu, or a list: cuda:0,cuda:1.", show_default="all")]
Model = Annotated[
    str | None, typer.Option(help="shapes, a folder, or a hub name with @revision.", show_default="shapes")
]
Judge = Annotated[
    str | None,
    typer.Option(
        help="shapes, a folder, a hub name with @revision, or another one (docs/guide/judges.md).",
        show_default="shapes",
    ),
]
SecondJudge = Annotated[
    str | None, typer.Option(metavar="JUDGE", help="As --judge: another one, for jobs with rule lower_bound.")
]
PairwiseJudge = Annotated[
    str | None, typer.Option(metavar="JUDGE", help="openai:ADDRESS#MODEL: compares two images, for jobs with finals.")
]
