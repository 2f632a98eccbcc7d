"""When an mDNS query may be answered: never by more, in the long run, than half of what queries bring. Pure; knows no socket."""

REFILL = 6
"""Bytes a second that a debt shrinks by itself: a lone query a minute gets the whole answer of a peer with a few addresses."""

PAUSE_SECONDS = 1.0
"""Between answers (RFC 6762 section 6)."""

ANSWER_SECONDS = 2.0
"""After a query, for which what leaves is its answer: zeroconf holds one back by up to 1.2 s that it gave in the last second."""


class AnswerAccount:
    """Each answer is a debt; half of each query's bytes and 6 bytes a second pay it off; in debt nothing is answered."""

    def __init__(self) -> None:
        self._debt = 0.0
        self._paid = self._answered = float("-inf")

    def query(self, size: int, now: float) -> bool:
        """A query of `size` bytes came at `now`, in seconds: whether to answer it."""
        self._debt = max(0.0, self._debt - size / 2 - REFILL * (now - self._paid))
        self._paid = now
        if self._debt > 0 or now < self._answered + PAUSE_SECONDS:
            return False
        self._answered = now
        return True

    def sent(self, size: int, now: float) -> None:
        """`size` bytes left at `now`; soon after a query that was to be answered they are its answer."""
        if now < self._answered + ANSWER_SECONDS:
            self._debt += size
