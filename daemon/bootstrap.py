"""Keeps us connected to the bootstraps we were told of, or to peers met before, with growing pauses. Owns the peer cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import structlog
import trio

from daemon.paths import read_file, write_durably
from daemon.transport.interface import Transport, TransportError
from dht.peer_cache import MAX_BYTES, PeerCache, decode_cache
from protocol.wire.ids import PeerId

log = structlog.get_logger("swarmd.bootstrap")

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds between tries: doubled from the first to the longest, each with full jitter, so that a mesh does not knock in step."""

CHECK_SECONDS = 1.0
CACHE_TRIES = 8
"""Cached peers tried at once: enough that one lives, few enough not to flood anyone."""

COMPANY = 3
"""While fewer peers than this are connected beside the bootstraps, cached ones are tried, the anchors first: a bootstrap that
answers may be hostile and show us its own friends alone."""

SAVE_NEW_SECONDS, SAVE_SECONDS = 2.0, 60.0

PUBLIC: tuple[str, ...] = ()
"""Bootstraps of the public mesh, tried where nobody names any. Empty: nobody runs public ones yet."""

NOBODY = (
    "nobody to join by: there are no public bootstraps yet. Name a peer of yours (`swarmd start --join ADDRESS`; `swarmd status` "
    "prints its addresses), or run a bootstrap for others (`swarmd bootstrap`)"
)


@dataclass(slots=True)
class _Bootstrap:
    peer: PeerId
    address: str
    error: str | None = "not tried yet"


class Bootstrap:
    """The join list and the peer cache. An address ends in /p2p/<peer id>, as the configuration has checked."""

    def __init__(
        self, transport: Transport, join: Sequence[str], cache_file: Path, rng: Random, unix_ms: Callable[[], int]
    ) -> None:
        self._transport = transport
        self._file = cache_file
        self._rng = rng
        self._unix_ms = unix_ms
        self._targets = [_Bootstrap(PeerId(address.rpartition("/p2p/")[2]), address) for address in join]
        self._targets = [target for target in self._targets if target.peer != transport.peer_id]
        self._cache = PeerCache()
        self._tried = False

    async def run(self) -> None:
        """Keep trying until cancelled."""
        self._cache = await trio.to_thread.run_sync(_read, self._file)
        async with trio.open_nursery() as nursery:
            for target in self._targets:
                nursery.start_soon(self._keep, target)
            nursery.start_soon(self._rejoin)
            await self._save_now_and_then()

    def view(self) -> list[dict[str, Any]]:
        """The bootstraps as `status` shows them."""
        paths = self._transport.paths()
        return [
            {"address": t.address, "connected": t.peer in paths, "error": None if t.peer in paths else t.error}
            for t in self._targets
        ]

    def problem(self) -> str | None:
        """Why we are in no mesh although we know of one; None where a peer is connected, or where none was named or ever met."""
        if self._transport.paths():
            return None
        met = len(self._cache.entries)
        if not self._targets:
            return f"none of the {met} peers that were met before answers" if met and self._tried else None
        target = self._targets[0]
        more = f" (and {len(self._targets) - 1} more)" if len(self._targets) > 1 else ""
        cached = f"; nor does any of {met} peers that were met before" if met and self._tried else ""
        return f"no bootstrap answers: {target.address}{more}: {target.error}{cached}"

    def hint(self) -> str | None:
        """What to do where there is nobody to join by."""
        if self._targets or self._cache.entries or self._transport.paths():
            return None
        return NOBODY

    def met(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """`peer` is connected and can be dialled at these addresses: remember it for the next start."""
        if addresses:
            self._cache = self._cache.seen(peer, addresses, self._unix_ms())

    async def _keep(self, target: _Bootstrap) -> None:
        pause = FIRST_PAUSE
        while True:
            if self._transport.path(target.peer) is None:
                try:
                    await self._transport.connect(target.peer, [target.address])
                    target.error = None
                    await trio.sleep(CHECK_SECONDS)
                    if self._transport.path(target.peer) is None:
                        raise TransportError("it closes the connection at once")
                    pause = FIRST_PAUSE
                    continue
                except TransportError as error:
                    if str(error) != target.error:
                        log.warning("a bootstrap does not answer", address=target.address, reason=str(error))
                    target.error = str(error)
                    await trio.sleep(pause * self._rng.uniform(0.5, 1.0))
                    pause = min(LONGEST_PAUSE, pause * 2)
                    continue
            await trio.sleep(CHECK_SECONDS)

    async def _rejoin(self) -> None:
        """Peers of an earlier run: the anchors at once, whatever bootstraps say; the others in turn while we lack company."""
        pause, at = FIRST_PAUSE, 0
        while True:
            named = {target.peer for target in self._targets}
            connected = self._transport.paths()
            entries = [entry for entry in self._cache.ordered() if entry.peer not in connected and entry.peer not in named]
            if entries and sum(peer not in named for peer in connected) < COMPANY:
                at = at if at < len(entries) else 0
                async with trio.open_nursery() as nursery:
                    for entry in entries[at : at + CACHE_TRIES]:
                        nursery.start_soon(self._try, PeerId(entry.peer), entry.addresses)
                self._tried = True
                at += CACHE_TRIES
                pause = min(LONGEST_PAUSE, pause * 2)
            else:
                pause, at = FIRST_PAUSE, 0
            await trio.sleep(max(CHECK_SECONDS, pause * self._rng.uniform(0.5, 1.0)))

    async def _try(self, peer: PeerId, addresses: Sequence[str]) -> None:
        try:
            await self._transport.connect(peer, addresses)
        except TransportError as error:
            log.debug("a cached peer does not answer", reason=str(error))

    async def _save_now_and_then(self) -> None:
        """A new peer soon, so that a killed daemon finds it again; mere times of known ones now and then."""
        saved, since = self._cache, trio.current_time()
        try:
            while True:
                await trio.sleep(SAVE_NEW_SECONDS)
                new = {entry.peer for entry in self._cache.entries} != {entry.peer for entry in saved.entries}
                if new or trio.current_time() - since >= SAVE_SECONDS:
                    saved, since = await self._save(saved), trio.current_time()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await self._save(saved)

    async def _save(self, saved: PeerCache) -> PeerCache:
        current = self._cache
        if current == saved:
            return saved
        try:
            await trio.to_thread.run_sync(write_durably, self._file, current.encode())
        except OSError as error:
            log.warning("the peer cache could not be written", reason=error.strerror)
            return saved
        return current


def _read(path: Path) -> PeerCache:
    try:
        return decode_cache(read_file(path, MAX_BYTES)[1])
    except OSError:
        return PeerCache()
