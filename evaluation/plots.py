"""The plots of an evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes

from bestofn.evaluation.curve import Point
from bestofn.evaluation.strategies import Strategy

GOLD, GREY = "#d49a1e", "#888888"


@contextmanager
def _figure(path: Path, columns: int, size: tuple[float, float]) -> Iterator[Any]:
    """A figure in a file: its axis, or one a column."""
    figure, axes = pyplot.subplots(1, columns, figsize=size, layout="constrained")
    yield axes
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def curve(path: Path, points: Sequence[Point]) -> None:
    """Score against N: judge, oracle and random judge; and the judge by category."""
    with _figure(path, 2, (11, 4.2)) as (left, right):
        n = [point.n for point in points]
        _judge(left, points)
        for tag in points[0].judge_by_category:
            right.plot(n, [point.judge_by_category[tag] for point in points], "o-", ms=3, label=tag.replace("_", " "))
        for axis, title in ((left, "mean of six categories"), (right, "judge, by category")):
            _against_n(axis, n, title)
            _shares(axis)


def deep(path: Path, points: Sequence[Point]) -> None:
    """Large N: the judge's opinion of its choice and the evaluator's."""
    with _figure(path, 2, (11, 4.2)) as (left, right):
        n = [point.n for point in points]
        _judge(left, points)
        _shares(left)
        right.plot(n, [point.margin for point in points], "o-", color=GOLD, label="log-odds of yes")
        right.set_ylabel("judge's log-odds of its choice")
        _against_n(left, n, "evaluator")
        _against_n(right, n, "judge")


def trade(path: Path, strategies: Sequence[Mapping[str, Any]]) -> None:
    """Score against TFLOPs, one series a kind of strategy."""
    with _figure(path, 1, (9, 5)) as axis:
        for kind, by_cost in _by_kind(strategies, "tflops").items():
            form = "o-" if kind == "plain" else "."
            style = {"color": GOLD, "zorder": 3} if kind == "plain" else {"ms": 9}
            axis.plot([one["tflops"] for one in by_cost], [one["score"] for one in by_cost], form, label=kind, **style)
        axis.set_xscale("log")
        axis.set_xlabel("TFLOP a prompt: text, denoising, decoding, judging")
        axis.set_ylabel("share of correct winners")
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)


def judges(path: Path, figures: Mapping[str, Any]) -> None:
    """Score against N of several judges on the same images, with the best that there is and a random choice."""
    with _figure(path, 1, (8, 4.8)) as axis:
        n = [int(size) for size in figures["oracle"]]
        axis.plot(n, list(figures["oracle"].values()), "--", color=GREY, label="oracle (the labels choose)")
        for one in figures["judges"]:
            axis.plot(n, [point["score"] for point in one["best_of"].values()], "o-", label=one["name"])
            low, high = zip(*(point["interval"] for point in one["best_of"].values()), strict=True)
            axis.fill_between(n, low, high, alpha=0.1, linewidth=0)
        axis.plot(n, list(figures["random"].values()), ":", color=GREY, label="random judge")
        _shares(axis)
        _against_n(axis, n, "judges on the same images")


def winners(path: Path, figures: Mapping[str, Any]) -> None:
    """What judges say of winners against the candidates drawn: the one that chose, and dashed the one that did not.

    Figures of both are over the same winners (`geneval_export.scores`). A judge whose yes is not known has no share.
    """
    with _figure(path, 2, (11, 4.2)) as axes:
        titles = {"judged_yes": "share of winners with a yes", "margin": "mean log-odds of winners"}
        other = figures.get("scored_by", {}).get("name", "")
        for axis, (name, title) in zip(axes, titles.items(), strict=True):
            series = ((name, "judge", "o-"), (f"scored_{name.removeprefix('judged_')}", other, "o--"))
            for i, (kind, fields) in enumerate(_by_kind(figures["strategies"], "candidates").items()):
                n = [one["candidates"] for one in fields]
                for field, judge, form in series:
                    values = [one.get(field) for one in fields]
                    if None not in values:
                        axis.plot(n, values, form, color=f"C{i}", label=f"{kind}, {judge}")
            _against_n(axis, sorted({round(one["candidates"], 1) for one in figures["strategies"]}), title)
        axes[0].set_ylim(0, 1.02)


def _by_kind(strategies: Sequence[Mapping[str, Any]], cost: str) -> dict[str, list[Mapping[str, Any]]]:
    """Strategies by their kind, each kind from the cheapest on."""
    series: dict[str, list[Mapping[str, Any]]] = {}
    for one in sorted(strategies, key=lambda one: one[cost]):
        series.setdefault(_kind(Strategy.parse(one["strategy"])), []).append(one)
    return series


def _kind(strategy: Strategy) -> str:
    kinds = []
    if strategy.steps is not None:
        kinds.append(f"{strategy.steps} steps")
    if strategy.draft is not None:
        kinds.append(f"drafts of {strategy.draft.num_inference_steps} steps")
    if strategy.preview is not None:
        kinds.append(f"previews after {strategy.preview.num_inference_steps} steps")
    if strategy.stop is not None:
        kinds.append("stop")
    return ", ".join(kinds) or "plain"


def _judge(axis: Axes, points: Sequence[Point]) -> None:
    n = [point.n for point in points]
    axis.plot(n, [point.oracle for point in points], "--", color=GREY, label="oracle (the evaluator chooses)")
    axis.plot(n, [point.judge for point in points], "o-", color=GOLD, label="judge")
    low, high = zip(*(point.judge_interval for point in points), strict=True)
    axis.fill_between(n, low, high, color=GOLD, alpha=0.15, linewidth=0)
    axis.plot(n, [point.random for point in points], ":", color=GREY, label="random judge")


def _shares(axis: Axes) -> None:
    axis.set_ylabel("share of correct winners")
    axis.set_ylim(0, 1.02)


def _against_n(axis: Axes, n: Sequence[float], title: str) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(n, [f"{value:g}" for value in n])
    axis.set_xlabel("N, candidates drawn")
    axis.set_title(title)
    axis.grid(alpha=0.25)
    if axis.lines:
        axis.legend(frameon=False, fontsize=8)
