"""The progress bars of a job, and of work that counts its steps."""

from collections.abc import Mapping

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from bestofn.cli.console import err
from bestofn.service.client.events import Progress
from bestofn.service.core.jobs import JobStatus


class StepBar(Bar):
    """One line on stderr for each stage of some work: its steps, and the figures that it hands out."""

    def __init__(self) -> None:
        figures = TextColumn("{task.fields[figures]}")
        steps = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), figures
        super().__init__(TextColumn("{task.description}"), *steps, console=err)

    def show(self, stage: str, figures: Mapping[str, float]) -> None:
        """Draw a stage at `step` of `steps`, and all other figures as text."""
        known = [task.id for task in self.tasks if task.description == stage]
        task = known[0] if known else self.add_task(stage, figures="")
        rest = figures_text({name: value for name, value in figures.items() if name not in ("step", "steps")})
        self.update(task, completed=max(0.0, figures["step"]), total=figures["steps"], figures=rest)


def figures_text(figures: Mapping[str, float]) -> str:
    """Figures in one line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())


class JobBar(Bar):
    """One line on stderr: queue position, then denoising steps, judged candidates and best score, then finals."""

    def __init__(self) -> None:
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("judged {task.fields[judged]}{task.fields[best]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._job = self.add_task("starting", total=None, judged="0", best="")

    def show(self, progress: Progress) -> None:
        """Draw the bar for a job that is this far."""
        best = progress.best and progress.best.verdict.p_yes
        done, total = progress.steps, progress.total_steps
        if progress.finals is not None:
            done, total = progress.finals.played, progress.finals.matches
        elif not total:  # nothing is drawn
            done, total = progress.judged, progress.num_samples
        self.update(
            self._job,
            description=describe(progress),
            completed=done,
            total=total,
            judged=f"{progress.judged}/{progress.num_samples}",
            best="" if best is None else f", best {best:.3f}",
        )


def describe(progress: Progress) -> str:
    """What the job does, and while it waits, which place it has and for how long."""
    if progress.finals is not None:
        return f"finals: {progress.finals.played} of {progress.finals.matches} matches"
    if progress.status is not JobStatus.QUEUED:
        return "drawing" if progress.total_steps else "judging"
    place = "" if progress.position is None else f", place {progress.position}"
    seconds = progress.estimated_wait_seconds
    if seconds is None:
        return f"waiting{place}"
    wait = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f"waiting{place}, about {wait}"
