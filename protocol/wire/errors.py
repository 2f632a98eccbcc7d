"""The faults that cross the wire or come from it, each with a stable code. Decides whose fault a failure is; handles none."""

from enum import StrEnum


class Code(StrEnum):
    """Stable error codes; append only, never reuse one."""

    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    BAD_SIGNATURE = "bad_signature"
    UNSUPPORTED = "unsupported"
    NOT_FOUND = "not_found"
    REFUSED = "refused"
    OVERLOADED = "overloaded"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    GONE = "gone"
    ENGINE_FAILED = "engine_failed"
    INTERNAL = "internal"


class SwarmdError(Exception):
    """Base of every error that swarmd raises on purpose."""


class LocalError(SwarmdError):
    """Our own bug or our own misuse of a machine: ends the task that made it."""


class RemoteError(SwarmdError):
    """A peer's fault or a peer's refusal: costs that peer, is counted, and ends nothing else.

    `retry_after` is in seconds and is None where the peer gave no hint.
    """

    def __init__(self, code: Code, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def malformed(message: str) -> RemoteError:
    """A `RemoteError` for bytes that break the wire contract."""
    return RemoteError(Code.MALFORMED, message)
