"""How a failed call's error travels: what of it a Fault frame carries, and what is read from one. Knows no call and no link."""

from protocol.rpc_frames import MAX_DEADLINE_MS, MAX_FAULT_CHARS, Fault
from protocol.wire.errors import Code, RemoteError


def fault_of(call_id: int, error: RemoteError) -> Fault:
    """The frame that ends call `call_id` with `error`: its message cut, its hint in whole milliseconds."""
    hint = None if error.retry_after is None else min(MAX_DEADLINE_MS, max(0, round(error.retry_after * 1000)))
    return Fault(call_id, error.code.value, error.message[:MAX_FAULT_CHARS], hint)


def error_of(fault: Fault) -> RemoteError:
    """The error that a peer's frame stands for; a code that we do not know is INTERNAL."""
    try:
        code = Code(fault.code)
    except ValueError:
        code = Code.INTERNAL
    return RemoteError(code, fault.message, None if fault.retry_after_ms is None else fault.retry_after_ms / 1000)
