"""Tables of an evaluation report, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from bestofn.evaluation.regret import MOST_LOSS, SPLITS


def tables(figures: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    parts = ["## Score against N", "", *_curve_table(figures["all"], figures.get("never_trained"))]
    controls = "; ".join(
        f"{name} {one['score']:.3f} ({one['interval'][0]:.3f} to {one['interval'][1]:.3f})"
        for name, one in figures["controls"].items()
    )
    parts += ["", f"Controls, which must not gain: {controls}.", ""]
    if "deep" in figures:
        parts += ["## Does more search fool the judge?", "", *_curve_table(figures["deep"], None), ""]
    if figures["strategies"]:
        parts += [
            "## Strategies",
            "",
            "Jobs are disjoint blocks of a prompt's first candidates, of as many (*of*) as the pool has of all that "
            "a strategy needs. A loss is against the same ones; a score is without their luck where others have more.",
            "",
            *_strategy_table(figures["strategies"]),
            "",
        ]
    if figures["planner"]:
        low, high = figures["planner"]["interval"]
        parts += [
            "A budget's plan, made on half of the prompts and measured on the other, falls short of the best of these "
            f"strategies in hindsight by {figures['planner']['mean']:.3f} ({low:.3f} to {high:.3f}), over budgets.",
            "",
        ]
    for N, one in figures["presets"].items():
        parts += [
            f"The cheapest strategy that reaches best of {N} within {MOST_LOSS} on half of the prompts takes "
            f"{one['cost'] / one['of']:.0%} of its TFLOPs on the other half and loses {one['loss']:+.3f} there "
            f"(bound {one['upper_bound']:+.3f}), a mean over {SPLITS} splits.",
            "",
        ]
    if any(one["confidence"] for one in figures["strategies"]):
        parts += ["## Promised and realised", "", *_confidence_table(figures["strategies"]), ""]
    if figures["drafts"]:
        parts += ["## Drafts and previews against full solutions", "", *_draft_table(figures["drafts"]), ""]
    drawn = ", ".join(f"{count} of {config}" for config, count in figures["candidates"].items())
    parts += [
        f"Model {figures['model']}, judge {figures['judge']}; candidates: {drawn}.",
        "",
        f"Machine: {figures['machine']}.",
    ]
    return "\n".join(parts) + "\n"


def _curve_table(one: Mapping[str, Any], never: Mapping[str, Any] | None) -> list[str]:
    points = one["points"]

    def line(name: str, values: Sequence[float]) -> str:
        return f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |"

    lines = [
        "| N | " + " | ".join(str(point["n"]) for point in points) + " |",
        "|---|" + "---|" * len(points),
        *(
            line(tag.replace("_", " "), [point["judge_by_category"][tag] for point in points])
            for tag in points[0]["judge_by_category"]
        ),
        line("**mean, judge**", [point["judge"] for point in points]),
        "| 95 % interval | "
        + " | ".join(f"{low:.3f} to {high:.3f}" for low, high in (point["judge_interval"] for point in points))
        + " |",
        line("mean, oracle", [point["oracle"] for point in points]),
        line("mean, random judge", [point["random"] for point in points]),
        line("judge's log-odds of its choice", [point["margin"] for point in points]),
    ]
    if never is not None:
        lines.append(line("never-trained combinations, judge", [point["judge"] for point in never["points"]]))
        lines.append(line("never-trained combinations, oracle", [point["oracle"] for point in never["points"]]))
    last = points[-1]
    low, high = last["gain_interval"]
    return [
        *lines,
        "",
        f"{one['prompts']} prompts x {one['samples']} samples. Best of {last['n']} by the judge: "
        f"{last['judge'] - points[0]['judge']:+.3f} over one sample ({low:+.3f} to {high:+.3f} over a random judge), "
        f"{100 * one['share_of_the_way']:.0f} % of the way to the oracle's. "
        f"{_right(one['judge_accuracy'])}; within a prompt it puts a right one above a wrong one "
        f"{100 * one['judge_auc_within_prompt']:.1f} % of the time.",
    ]


def _right(accuracy: float | None) -> str:
    if accuracy is None:
        return "The judge has no calibration, so its yes is not known"
    return f"The judge is right on {100 * accuracy:.1f} % of images"


def _strategy_table(strategies: Sequence[Mapping[str, Any]]) -> list[str]:
    against = [N for N in ("32", "128") if all(N in one["loss"] for one in strategies)]
    head = "| strategy | of | score | 95 % interval | candidates | verdicts | TFLOP | seconds of a core | best kept |"
    return [
        head + "".join(f" loss to best of {N} (bound) |" for N in against),
        "|---|" + "---|" * (8 + len(against)),
        *(
            f"| {one['strategy']} | {one['samples']} | {one['score']:.3f} | {one['interval'][0]:.3f} to "
            f"{one['interval'][1]:.3f} | {one['candidates']:.1f} | {one['verdicts']:.1f} | {one['tflops']:.4f} | "
            f"{one['seconds']:.2f} | {one['keeps_the_best']:.2f} |"
            + "".join(f" {one['loss'][N]['mean']:+.3f} ({one['loss'][N]['upper_bound']:+.3f}) |" for N in against)
            for one in strategies
        ),
    ]


def _confidence_table(replayed: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        "| strategy | jobs that stopped sure | promised | realised |",
        "|---|---|---|---|",
        *(
            f"| {one['strategy']} | {row['jobs']} | {row['promised']:.3f} | {row['realised']:.3f} |"
            for one in replayed
            for row in one["confidence"]
        ),
    ]


def _draft_table(drafts: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| | heats of 16 | rank correlation | best among 1 | 2 | 4 | 8 |", "|---|---|---|---|---|---|---|"]
    for one in drafts:
        name = f"draft of {one['steps']}" if one["after"] is None else f"preview after {one['after']} of {one['steps']}"
        kept = " | ".join(f"{share:.2f}" for share in one["retention"].values())
        lines.append(f"| {name} | {one['jobs']} | {one['spearman']:.2f} | {kept} |")
    return lines
