"""Peers tell each other of peers, within limits: signed offers of those that are there. Decides whom to ask and what to hand out.

Only signed, unexpired offers are passed on, so that a liar can hide peers and invent none; and an offer heard so routes nobody.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from random import Random
from typing import Annotated

import msgspec
import structlog
import trio

from daemon.calls import Calls, InboundCall
from dht.offers import SignedOffer, open_offer
from protocol.wire.codec import Message, decode, encode
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import PeerId, short
from protocol.wire.limits import MAX_RECORD_BYTES

log = structlog.get_logger("swarmd.exchange")

METHOD = "peers.offers"
MAX_OFFERS = 16
MAX_REPLY_BYTES = 64 << 10
ANSWER_SECONDS = 20.0
"""One answer a peer in this time: who asks more often learns nothing new, and costs us."""

ENOUGH = 8
"""Connected peers from which on nobody is asked: gossip brings the rest."""

_CALL_SECONDS = 10.0
_MAX_ASKED = 4_096

RawOffer = Annotated[bytes, msgspec.Meta(max_length=MAX_RECORD_BYTES)]


class PeerOffers(Message, frozen=True):
    """The answer: signed offers in no meaningful order."""

    offers: Annotated[tuple[RawOffer, ...], msgspec.Meta(max_length=MAX_OFFERS)]


class PeerExchange:
    """`known` are offers of peers that are there now; `heard(raw)` takes one that another peer told of, and dials as it likes."""

    def __init__(
        self,
        calls: Calls,
        known: Callable[[], Sequence[SignedOffer]],
        heard: Callable[[SignedOffer], None],
        unix_ms: Callable[[], int],
        rng: Random,
    ) -> None:
        self._calls = calls
        self._known = known
        self._heard = heard
        self._unix_ms = unix_ms
        self._rng = rng
        self._answered: OrderedDict[PeerId, float] = OrderedDict()
        self.counters = {"asked": 0, "answered": 0, "refused": 0, "learned": 0, "bad": 0}

    def serve(self) -> None:
        """Answer others from now on."""
        self._calls.serve(METHOD, self._serve)

    async def ask(self, peer: PeerId) -> int:
        """Learn of peers from `peer`; how many valid offers it told of."""
        self.counters["asked"] += 1
        try:
            raw = await self._calls.unary(peer, METHOD, b"", timeout=_CALL_SECONDS)
            offers = decode(PeerOffers, raw, MAX_REPLY_BYTES).offers
        except RemoteError as error:
            log.debug("no peers were exchanged", peer=short(peer), reason=error.message)
            return 0
        good = 0
        for offer in offers:
            try:
                signed = open_offer(offer, self._unix_ms())
            except RemoteError:
                self.counters["bad"] += 1
                continue
            good += 1
            self._heard(signed)
        self.counters["learned"] += good
        return good

    async def _serve(self, call: InboundCall) -> bytes:
        now = trio.current_time()
        last = self._answered.get(call.peer)
        if last is not None and now - last < ANSWER_SECONDS:
            self.counters["refused"] += 1
            raise RemoteError(Code.OVERLOADED, "peers are exchanged now and then", retry_after=ANSWER_SECONDS)
        self._answered[call.peer] = now
        self._answered.move_to_end(call.peer)
        if len(self._answered) > _MAX_ASKED:
            self._answered.popitem(last=False)
        self.counters["answered"] += 1
        others = [signed.raw for signed in self._known() if signed.offer.peer != call.peer]
        chosen: list[bytes] = []
        for raw in self._rng.sample(others, min(MAX_OFFERS, len(others))):
            if sum(map(len, chosen)) + len(raw) <= MAX_REPLY_BYTES - 1024:
                chosen.append(raw)
        return encode(PeerOffers(tuple(chosen)))
