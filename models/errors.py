"""Errors of the models, each with the numbers and the remedy in its text.

ModelError
├── CheckpointError      a folder, config field or weight does not fit
├── UnsupportedScheduler a scheduler setting that no solver here implements
└── PromptTooLong        more tokens than the text encoder takes
"""


class ModelError(ValueError):
    """Anything that a checkpoint or a request asks of the models and they cannot give."""


class CheckpointError(ModelError):
    """A checkpoint is missing, incomplete or of another architecture."""


class UnsupportedScheduler(ModelError):
    """The checkpoint's scheduler has a setting that no solver here implements."""


class PromptTooLong(ModelError):
    """The prompt has more tokens than the text encoder takes.

    Attributes:
        tokens: tokens of the prompt.
        limit: the most that the checkpoint takes.
    """

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(f"the prompt has {tokens} tokens, the text encoder takes at most {limit}: shorten it")
        self.tokens = tokens
        self.limit = limit

    def __reduce__(self) -> tuple[type["PromptTooLong"], tuple[int, int]]:
        """As pickle needs it: an error of a worker process is raised again by its parent."""
        return type(self), (self.tokens, self.limit)


class UnsupportedDevice(ModelError):
    """A device that does not support the request."""
