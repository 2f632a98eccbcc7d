"""A rate limit on bytes. Decides how long a sender waits; keeps no clock."""

from dataclasses import dataclass


@dataclass(slots=True)
class ByteRate:
    """Lets `per_second` bytes a second pass on the long run, and `burst` at once; 0 a second is no limit.

    A caller takes first and waits then, so a piece larger than the burst passes too, and callers queue by what they took.
    """

    per_second: float
    burst: float
    _owed: float = 0.0
    _at: float = 0.0

    def take(self, size: int, now: float) -> float:
        """Take `size` bytes at `now`; seconds to wait before they are sent."""
        if not self.per_second:
            return 0.0
        self._owed = max(0.0, self._owed - (now - self._at) * self.per_second)
        self._at = now
        self._owed += size
        return max(0.0, self._owed - self.burst) / self.per_second
