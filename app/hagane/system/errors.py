"""The error hierarchy: one class per thing a caller can do about it.

Nothing here knows HTTP; `hagane.api.errors` maps these classes to status codes.
"""

from __future__ import annotations


class HaganeError(Exception):
    """Base of every error a user may see. The message names the value and the remedy."""

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
    """What is asked for contradicts what is there now; the message names both."""

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
    """Nothing more can be written to the data directory until somebody frees space there."""

    code = "disk_full"


class TrainingError(HaganeError):
    """A run that cannot go on; its last checkpoint stays. `code` says why in one word.

    One of `invalid_file`, `invalid_model`, `non_finite_loss`, `out_of_memory`, `disk_full`.
    """

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class TrainingInterrupted(HaganeError):  # noqa: N818 - asked for, not an error
    """The listener asked the run to stop; its checkpoint is written."""

    code = "interrupted"
