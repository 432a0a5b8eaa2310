"""The error tree of the service, each error with its HTTP status and a machine-readable code.

BestOfNError
├── PromptRefused           400  the operator's prompt checker refuses the prompt
├── InvalidRequest          422  the request cannot be served as written; says what to change
├── IdempotencyMismatch     422  the same Idempotency-Key came with another body
├── NotAuthorized           401  no API key, or a wrong one
├── HostNotAllowed          403  Host or Origin do not belong to this loopback server
├── JobNotFound             404
├── ImageNotFound           404  the job has no such image
├── ModelNotFound           404  no such model is deployed
├── JobGone                 410  the job ended longer ago than results are kept
├── UnsupportedMediaType    415
├── Overloaded              429  refused at submission; carries Retry-After
├── TooManyCalls            429  too many waiting calls or event streams of one key; carries Retry-After
├── Unavailable             503  no warm worker, or the queue cannot be reached; carries Retry-After
├── WaitTimeout             504  the job took longer than the server waits
├── DeadlinePassed          504  the job's deadline passed before anything could be returned
├── JobFailed               500  the job ended in failure; carries its reason
├── JobUnreadable           500  what is stored of a job cannot be read by this version
├── JobCanceled             409  the job was canceled; carries x-should-retry: false
└── SetupError              (command line) a checkpoint, device or server does not fit; names the fix
    └── JudgeAway           the server of a judge or checker does not answer, or not as expected
"""


class BestOfNError(Exception):
    """Root of every error that this project raises on purpose: `status` is the HTTP status, `code` a stable name."""

    status = 500
    code = "internal"

    def __init__(self, detail: str, *, field: str | None = None, retry_after: float | None = None) -> None:
        """Set the attributes of the same names.

        Args:
            detail: text for the caller: the value, the limit and the fix.
            field: request field at fault.
            retry_after: seconds after which the same call may succeed.
        """
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.retry_after = retry_after


class InvalidRequest(BestOfNError):
    status = 422
    code = "invalid_request"


class PromptRefused(BestOfNError):
    status = 400
    code = "prompt_refused"


class IdempotencyMismatch(InvalidRequest):
    code = "idempotency_mismatch"


class NotAuthorized(BestOfNError):
    status = 401
    code = "not_authorized"


class HostNotAllowed(BestOfNError):
    status = 403
    code = "host_not_allowed"


class JobNotFound(BestOfNError):
    status = 404
    code = "job_not_found"


class ImageNotFound(BestOfNError):
    status = 404
    code = "image_not_found"


class ModelNotFound(BestOfNError):
    status = 404
    code = "model_not_found"


class JobGone(BestOfNError):
    status = 410
    code = "job_gone"


class UnsupportedMediaType(BestOfNError):
    status = 415
    code = "unsupported_media_type"


class Overloaded(BestOfNError):
    status = 429
    code = "overloaded"


class TooManyCalls(BestOfNError):
    status = 429
    code = "too_many_calls"


class Unavailable(BestOfNError):
    status = 503
    code = "unavailable"


class WaitTimeout(BestOfNError):
    status = 504
    code = "wait_timeout"


class DeadlinePassed(BestOfNError):
    status = 504
    code = "deadline_passed"


class JobFailed(BestOfNError):
    code = "job_failed"


class JobUnreadable(BestOfNError):
    """Stored text of a job cannot be read; `job_status` and `job_error` are known where they could be read."""

    code = "job_unreadable"
    job_status: str | None = None
    job_error: str | None = None


class JobCanceled(BestOfNError):
    status = 409
    code = "job_canceled"


class SetupError(BestOfNError):
    code = "setup"


class JudgeAway(SetupError):
    code = "judge_away"

    def __init__(self, detail: str, quiet: str) -> None:
        """`quiet` is the detail for logs: without the server's answer, which may quote a prompt."""
        super().__init__(detail)
        self.quiet = quiet

    def __reduce__(self) -> tuple[type["JudgeAway"], tuple[str, str]]:
        """As pickle needs it, which would call `__init__` with the detail alone."""
        return type(self), (self.detail, self.quiet)
