"""The error hierarchy: one class for each thing that a caller can do about it.

    HaganeError                      internal_error
    ├── ConfigurationError           invalid_configuration    fix the setting or command line
    ├── ModelError                   invalid_model            fix the model directory
    ├── InvalidRequestError          invalid_value            fix the request
    │   ├── ContextLengthError       context_length_exceeded  shorten the prompt or max_tokens
    │   ├── ModelNotFoundError       model_not_found
    │   ├── NotFoundError            not_found
    │   ├── TooLargeError            request_too_large        raise the setting it names
    │   └── ConflictError            conflict                 look again, then decide
    ├── QueueFullError               queue_full               retry after `retry_after` seconds
    ├── RateLimitError               rate_limit_exceeded      retry after `retry_after` seconds
    ├── EngineUnavailableError       engine_unavailable       retry after `retry_after` seconds
    ├── EngineCrashedError           engine_crashed           retry; the engine restarts
    ├── DeadlineExceededError        deadline_exceeded
    ├── DiskFullError                disk_full                free space on the disk
    ├── StoreUnavailableError        store_unavailable        retry after `retry_after` seconds
    ├── TrainingError                (one of several)         fix the cause, start the job again
    ├── RankLostError                rank_lost                continue from the checkpoint
    └── TrainingInterrupted          interrupted              continue from the checkpoint

The second column is `code`. Nothing here knows HTTP: `hagane.api.errors` maps these classes to
status codes.
"""

from __future__ import annotations


class HaganeError(Exception):
    """Base of every error that a user may see. The message names the value and the remedy."""

    code: str = "internal_error"


class ConfigurationError(HaganeError):
    """A setting or command line that cannot work. The command exits with status 2."""

    code = "invalid_configuration"


class ModelError(HaganeError):
    """A model directory that cannot be loaded; the message names the file and the tensor."""

    code = "invalid_model"


class InvalidRequestError(HaganeError):
    """A request that can never succeed as it stands.

    `param` is the offending field's path (`"messages[0].content"`), or None.
    """

    code = "invalid_value"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code


class ContextLengthError(InvalidRequestError):
    """Prompt plus requested tokens exceed the model's context."""

    code = "context_length_exceeded"


class ModelNotFoundError(InvalidRequestError):
    """The request names a model that is not served here."""

    code = "model_not_found"


class NotFoundError(InvalidRequestError):
    """The request names a file, job or alias that does not exist."""

    code = "not_found"


class TooLargeError(InvalidRequestError):
    """More bytes than a setting allows; the message names it."""

    code = "request_too_large"


class ConflictError(InvalidRequestError):
    """The request contradicts the current state; the message names both."""

    code = "conflict"


class QueueFullError(HaganeError):
    """The waiting queue is at its bound; try again after `retry_after` seconds."""

    code = "queue_full"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimitError(HaganeError):
    """The key has used up its allowance; try again after `retry_after` seconds."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineUnavailableError(HaganeError):
    """The engine is starting, restarting or draining; try again after `retry_after` seconds."""

    code = "engine_unavailable"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineCrashedError(HaganeError):
    """The engine process died while this request was in flight."""

    code = "engine_crashed"


class DeadlineExceededError(HaganeError):
    """The request's deadline passed before it finished."""

    code = "deadline_exceeded"


class DiskFullError(HaganeError):
    """The data directory's disk has no room left."""

    code = "disk_full"


class StoreUnavailableError(HaganeError):
    """The database or the object store does not answer; try again after `retry_after` seconds."""

    code = "store_unavailable"
    retry_after = 1.0


class TrainingError(HaganeError):
    """A run that cannot continue; its last checkpoint is kept. `code` is the reason.

    One of `invalid_file`, `invalid_model`, `non_finite_loss`, `out_of_memory`, `disk_full`.
    """

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class RankLostError(HaganeError):
    """A process of a data-parallel run is gone; started again, the run resumes."""

    code = "rank_lost"


class TrainingInterrupted(HaganeError):  # noqa: N818 - requested, not an error
    """The listener asked the run to stop; its checkpoint is written."""

    code = "interrupted"
