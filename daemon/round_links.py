"""How round messages travel: pushed once, pulled by address from whoever answers first. Decides whether a lost peer is gone."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from daemon.calls import Calls
from protocol.round.messages import open_message
from protocol.round.pulling import PullRequest, read_reply
from protocol.wire.codec import encode
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import Hash, PeerId, short

log = structlog.get_logger("swarmd.rounds")

METHOD = "round"
PULL_METHOD = "round.pull"

GONE_SECONDS = 1.0
"""How long a lost peer has to be reached again: a connection that flaps is back in less, and a round should not wait longer."""

RETRY_SECONDS = 0.2
HEDGE_SECONDS = 0.5
"""A peer that has not answered a pull after this no longer holds up the next one."""

MAX_PUSHES = 64
"""Messages on their way to one peer at once; beyond it they are dropped, and the machines repeat what matters."""

MAX_PULLED = 100
_SEND_SECONDS = 5.0

Arrived = Callable[[PeerId, bytes], None]


@dataclass(slots=True, eq=False)
class _Check:
    """`found` stays None where whoever checked was cancelled."""

    done: trio.Event = field(default_factory=trio.Event)
    found: bool | None = None


class RoundLinks:
    """Pushes and pulls. `reach` tries to connect to a peer and says whether it is connected; `gone` hears of one that is not."""

    def __init__(self, calls: Calls, reach: Callable[[PeerId], Awaitable[bool]], gone: Callable[[PeerId], None]) -> None:
        self._calls = calls
        self._reach = reach
        self._gone = gone
        self._checks: dict[PeerId, _Check] = {}
        self._pushes: Counter[PeerId] = Counter()
        self.faults: Counter[str] = Counter()

    @property
    def pushing(self) -> int:
        """Messages on their way."""
        return self._pushes.total()

    async def push(self, peer: PeerId, raw: bytes) -> None:
        """Bring one message to `peer`, or not; a connection that was only interrupted is tried again once."""
        if self._pushes[peer] >= MAX_PUSHES:
            self.faults["overflow"] += 1
            return
        self._pushes[peer] += 1
        try:
            if not await self._pushed(peer, raw) and await self.still_there(peer):
                await self._pushed(peer, raw)
        finally:
            self._pushes[peer] -= 1
            if not self._pushes[peer]:
                del self._pushes[peer]

    async def _pushed(self, peer: PeerId, raw: bytes) -> bool:
        """False where the peer was lost."""
        try:
            await self._calls.unary(peer, METHOD, raw, timeout=_SEND_SECONDS)
        except RemoteError as error:
            log.debug("a round message was not taken", peer=short(peer), code=str(error.code), reason=error.message)
            return error.code is not Code.GONE
        return True

    async def still_there(self, peer: PeerId) -> bool:
        """Whether a peer whose connection was lost can be reached again; many may ask at once, one tries."""
        while (other := self._checks.get(peer)) is not None:
            await other.done.wait()
            if other.found is not None:
                return other.found
        check = self._checks[peer] = _Check()
        try:
            found = False
            with trio.move_on_after(GONE_SECONDS):
                found = await self._keep_trying(peer)
            check.found = found
        finally:
            del self._checks[peer]
            check.done.set()
        if not found:
            self._gone(peer)
        return found

    async def _keep_trying(self, peer: PeerId) -> bool:
        while True:
            if await self._reach(peer):
                return True
            await trio.sleep(RETRY_SECONDS)

    async def pull(self, round_id: Hash, hashes: Sequence[Hash], peers: Sequence[PeerId], arrived: Arrived) -> None:
        """Ask `peers` for the messages at `hashes`, each a moment after the one before, until all are found."""
        wanted = set(hashes)
        async with trio.open_nursery() as nursery:
            for peer in peers:
                done = trio.Event()
                nursery.start_soon(self._pull_from, peer, round_id, wanted, arrived, done)
                with trio.move_on_after(HEDGE_SECONDS):
                    await done.wait()
                if not wanted:
                    nursery.cancel_scope.cancel()
                    break

    async def _pull_from(self, peer: PeerId, round_id: Hash, wanted: set[Hash], arrived: Arrived, done: trio.Event) -> None:
        request = PullRequest(round_id, tuple(sorted(wanted))[:MAX_PULLED])
        try:
            for raw in read_reply(await self._calls.unary(peer, PULL_METHOD, encode(request), timeout=_SEND_SECONDS)):
                self._accept(peer, raw, wanted, arrived)
                await trio.lowlevel.checkpoint()  # each costs a verification or two
        except RemoteError as error:
            log.debug("a pull failed", peer=short(peer), code=str(error.code), reason=error.message)
        done.set()

    def _accept(self, peer: PeerId, raw: bytes, wanted: set[Hash], arrived: Arrived) -> None:
        """Pass on what was asked for; anything else is a fault of the peer that gave it."""
        try:
            address = open_message(raw).hash
        except RemoteError as error:
            self.faults[str(error.code)] += 1
            return
        if address in wanted:
            wanted.discard(address)
            arrived(peer, raw)
