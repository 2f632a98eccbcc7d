"""What a replica keeps of one issuer, and which of its logs are closed by newer ones or by a fork. Values alone."""

from dataclasses import dataclass, field

from crdt_store.forks import Fork
from crdt_store.logs import Log
from crdt_store.room import Bounds
from protocol.wire.ids import Hash


@dataclass(slots=True)
class Issuer:
    """What is held of one peer."""

    logs: dict[int, Log] = field(default_factory=dict)
    epochs: list[int] = field(default_factory=list)
    """Ascending, as the keys of `logs`."""
    claims: int = 0
    fork: Fork | None = None
    digest: Hash | None = None


def closed(state: Issuer, epoch: int, bounds: Bounds) -> bool:
    """Whether nothing more of this log is taken: its issuer is frozen from there on, or newer logs fill the quota."""
    if state.fork is not None and epoch >= state.fork.epoch:
        return True
    return epoch in beyond_quota(state, epoch, bounds)


def beyond_quota(state: Issuer, wanted: int | None, bounds: Bounds) -> tuple[int, ...]:
    """The epochs, of those held and `wanted`, that are older than a full quota of newer ones."""
    if state.claims < bounds.issuer_claims and len(state.epochs) < bounds.issuer_epochs:
        return ()
    epochs = state.epochs if wanted is None or wanted in state.logs else sorted([*state.epochs, wanted])
    claims = 0
    beyond: list[int] = []
    for newer, epoch in enumerate(reversed(epochs)):
        if claims >= bounds.issuer_claims or newer >= bounds.issuer_epochs:
            beyond.append(epoch)
        log = state.logs.get(epoch)
        claims += 0 if log is None else log.length
    return tuple(beyond)
