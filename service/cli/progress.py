"""The progress bar of a job."""

from types import TracebackType

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bestofn.service.cli.console import err
from bestofn.service.jobs import JobStatus
from bestofn.service.schemas import JobResult


class JobBar:
    """One line on stderr that follows denoising steps, judged candidates and the best score so far."""

    def __init__(self) -> None:
        self._bar = Progress(
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
        self._task = self._bar.add_task("starting", total=None, judged="0", best="")

    def __enter__(self) -> "JobBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, result: JobResult) -> None:
        """Draw the bar for the job as it stands."""
        progress = result.progress
        description = "waiting" if result.status is JobStatus.QUEUED else "drawing"
        if progress is None:
            self._bar.update(self._task, description=description)
            return
        best = progress.best and progress.best.verdict.p_yes
        self._bar.update(
            self._task,
            description=description,
            completed=progress.steps,
            total=progress.total_steps,
            judged=f"{progress.judged}/{progress.num_samples}",
            best="" if best is None else f", best {best:.3f}",
        )
