"""The judge beside the generator in one device's memory, or in turns with it where both do not fit."""

from collections.abc import Callable

from bestofn.judge.judge import Judge
from bestofn.models.generator import FOLDERS, Generator
from bestofn.service.engine.microbatch import release_cache


class JudgeResidence:
    """Gives the judge, loaded when first needed.

    Where it does not fit beside the generator's parts, each gives way to the other: slow, but any job runs.
    """

    def __init__(self, load: Callable[[], Judge], generator: Generator, *, shared: bool) -> None:
        """
        Args:
            load: reads the judge from disk.
            generator: what has to give way.
            shared: both fit into memory together.
        """
        self._load = load
        self._generator = generator
        self._judge: Judge | None = None
        self.shared = shared

    def get(self) -> Judge:
        """The judge, in memory."""
        if self._judge is None:
            if not self.shared:
                for part in FOLDERS:
                    self._generator.release(part)
            self._judge = self._load()
        return self._judge

    def give_way(self) -> None:
        """Called before the generator works: drops the judge unless there is room for both."""
        if not self.shared and self._judge is not None:
            self._judge = None
            release_cache()
