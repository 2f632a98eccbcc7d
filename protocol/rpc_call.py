"""One open call of a link: its deadline, its credit each way, and when its window grows. Knows no other call and no frame."""

from protocol.rpc_queue import Lane

GROWN_WINDOW_BYTES = 4 << 20
"""Credit of a call whose reader keeps up, as the transport's largest stream window: measured, 1 MiB halves the rate."""

MAX_LINK_GROWTH_BYTES = 8 << 20
"""By how much the windows of all calls of one link together may grow beyond the Hello's."""


class OpenCall(Lane, eq=False, kw_only=True):
    """The state of one call on one side. Sizes in bytes, the deadline on the caller's clock."""

    id: int
    deadline: float
    request_bytes: int
    credit: int
    """What we may still send."""
    granted: int
    """What the peer may still send."""
    more: bool
    window: int
    """What `granted` is brought back to."""
    unreported: int = 0
    """Taken by the application since our last Credit."""
    sent_end: bool = False
    got_end: bool = False

    def earned_growth(self, link_growth: int) -> int:
        """By how much the window may grow now, where all windows of the link have grown by `link_growth` already.

        A reader that left less than an eighth of the window and took a quarter since its last Credit earns a doubled window.
        Bulk needs it, on a long path and wherever a wake-up is slow; one that lags behind never gets it.
        """
        held = self.window - self.granted - self.unreported
        if held * 8 > self.window or self.unreported * 4 < self.window:
            return 0
        return max(0, min(self.window, GROWN_WINDOW_BYTES - self.window, MAX_LINK_GROWTH_BYTES - link_growth))
