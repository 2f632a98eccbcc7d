"""How long we wait for what, in one place. Values alone."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `queue` and `reader` bound what we serve, the others what we ask of a peer."""

    queue: float = 5.0
    """The longest wait for a slot of our engine; beyond it another peer serves sooner than we do."""
    reader: float = 30.0
    """A peer that takes nothing of its answer for this long gives its slot back: others wait for it."""
    first_token: float = 60.0
    """Until a peer's first word: a long prompt is read meanwhile, and it may have waited for a slot. Our own engine may take as
    long between two words, as it may read another's prompt then; to its first one it has the time of a silent connection."""
    gap: float = 15.0
    """Between two words. A frozen host is noticed by the link in some 6 s; this is for an engine that hangs behind a live one."""
    call: float = 3600.0
    """Of a whole call."""
