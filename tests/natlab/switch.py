"""The backbone: an Ethernet switch in this process that delays and loses frames, since the kernel here has no netem."""

import contextlib
import heapq
import itertools
import os
import select
import threading
import time
from random import Random

_FRAME_BYTES = 65536
_IDLE_SECONDS = 0.5
_LATE_SECONDS = 0.5


class Switch:
    """Carries frames between TAP descriptors, each after `delay` seconds one way, losing a share `loss` of them."""

    def __init__(self, delay: float, loss: float = 0.0, seed: int = 1) -> None:
        self.delay = delay
        self.loss = loss
        self.carried = 0
        self.stood_still = 0.0
        """Seconds in which this process did not get to carry frames that were due: whatever ran then shows nothing."""
        self._rng = Random(seed)
        self._ports: dict[int, set[bytes]] = {}
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._wake, False)
        self._stopped = False
        self._thread = threading.Thread(target=self._carry, name="switch", daemon=True)
        self._thread.start()

    def plug(self, descriptor: int) -> None:
        self._ports[descriptor] = set()
        os.write(self._waker, b"x")

    def unplug(self, descriptor: int) -> None:
        self._ports.pop(descriptor, None)
        os.write(self._waker, b"x")
        os.close(descriptor)

    def close(self) -> None:
        self._stopped = True
        os.write(self._waker, b"x")
        self._thread.join(5)
        for descriptor in (*self._ports, self._wake, self._waker):
            os.close(descriptor)
        self._ports.clear()

    def _carry(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []
        order = itertools.count()
        while not self._stopped:
            began = time.monotonic()
            timeout = max(0.0, waiting[0][0] - began) if waiting else _IDLE_SECONDS
            try:
                readable, _, _ = select.select([self._wake, *self._ports], [], [], timeout)
            except (OSError, ValueError):
                continue  # a port was unplugged while we waited
            late = time.monotonic() - began - timeout
            self.stood_still += late if late > _LATE_SECONDS else 0.0
            for descriptor in readable:
                if descriptor == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 64)
                    continue
                for frame in _frames(descriptor):
                    if not self.loss or self._rng.random() >= self.loss:
                        heapq.heappush(waiting, (time.monotonic() + self.delay, next(order), descriptor, frame))
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, source, frame = heapq.heappop(waiting)
                self._deliver(source, frame)

    def _deliver(self, source: int, frame: bytes) -> None:
        self.carried += 1
        target, sender = frame[:6], frame[6:12]
        if source in self._ports:
            self._ports[source].add(sender)
        known = [port for port, stations in self._ports.items() if target in stations]
        for port in known or [port for port in tuple(self._ports) if port != source]:
            with contextlib.suppress(OSError):  # its namespace may be going away
                os.write(port, frame)


def _frames(descriptor: int) -> list[bytes]:
    frames: list[bytes] = []
    with contextlib.suppress(OSError):
        while len(frames) < 64:
            frames.append(os.read(descriptor, _FRAME_BYTES))
    return frames
