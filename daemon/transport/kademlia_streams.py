"""Streams for the DHT's questions: one that stays open to each peer that keeps it, to a stock node one for each question.

Decides when a stream may carry another question; what is asked, and of whom, is the walker's. Opening a stream and agreeing on
its protocol costs both sides more than the question does; stock nodes serve a dozen streams at once, so theirs are not held open.
"""

import math
from collections import OrderedDict
from itertools import islice

import trio
from libp2p.kad_dht.common import PROTOCOL_ID

from daemon.transport.interface import TransportError
from daemon.transport.kademlia_wire import VarintFrames, decode_answer, encode_question
from daemon.transport.muxer import MuxedConnection
from daemon.transport.streams import Libp2pStream, open_stream
from dht.contacts import Contact
from dht.kad_messages import AddProvider, Answer, Question
from protocol.wire.ids import PeerId

KEPT = "/swarmd/kad/1"
"""The messages of `/ipfs/kad/1.0.0` on a stream that stays open between them, with an answer to ADD_PROVIDER too."""

MAX_KEPT = 256
MAX_OWED = 3
"""Answers that may be on their way to questions that were given up: a peer that owes more gets a new stream."""

IDLE_SECONDS = 30.0


class _Kept:
    __slots__ = ("frames", "owed", "ready", "since", "stream")

    def __init__(self, stream: Libp2pStream) -> None:
        self.stream = stream
        self.frames = VarintFrames()
        self.ready: list[bytes] = []
        self.owed = 0
        self.since = 0.0

    async def next(self) -> bytes:
        """The next answer, to whichever question."""
        while not self.ready:
            received = await self.stream.receive_some()
            if not received:
                raise TransportError("the stream ended before the answer")
            self.ready = list(islice(self.frames.feed(received), MAX_OWED + 2))  # one more than it can owe costs it the stream
        self.owed -= 1
        return self.ready.pop(0)


class QuestionStreams:
    """The idle streams of one host by their connection, the longest idle first."""

    def __init__(self) -> None:
        self._idle: OrderedDict[MuxedConnection, _Kept] = OrderedDict()

    async def ask(
        self, contact: Contact, connection: MuxedConnection, question: Question, me: Contact, patience: trio.CancelScope
    ) -> Answer:
        """One question to a peer that keeps its streams. Given up before `patience` has ended, it leaves the stream in use.

        Raises TransportError or RemoteError.
        """
        frame = encode_question(question, me)
        kept = self._idle.pop(connection, None)
        if kept is not None and kept.stream.is_open:
            try:
                return await self._put(kept, connection, question, frame, patience)
            except TransportError:  # perhaps it gave the stream up when the question came: once more, on another one
                if connection.is_closed:
                    raise
        kept = _Kept(await open_stream(contact.peer, connection, KEPT, early=frame))
        kept.owed = 1
        return await self._put(kept, connection, question, b"", patience)

    async def _put(
        self, kept: _Kept, connection: MuxedConnection, question: Question, frame: bytes, patience: trio.CancelScope
    ) -> Answer:
        kept.stream.parked = usable = False
        try:
            if frame:
                await kept.stream.send_all(frame)  # all of it or nothing
                kept.owed += 1
            while kept.owed > 1:
                await kept.next()
            answer = decode_answer(await kept.next(), question)
            usable = not kept.ready
            return answer
        except trio.Cancelled:
            usable = not patience.cancel_called and kept.owed <= MAX_OWED
            raise
        finally:
            if usable:
                self._keep(connection, kept)
            else:
                with trio.CancelScope(shield=True):
                    await kept.stream.reset()

    def _keep(self, connection: MuxedConnection, kept: _Kept) -> None:
        self.close_idle()
        if connection in self._idle or connection.is_closed:
            kept.stream.release()
            return
        kept.stream.parked = True
        kept.since = trio.current_time()
        self._idle[connection] = kept

    @property
    def idle_until(self) -> float:
        """When the longest unused is to be let go, on trio's clock; never where there is none."""
        return next(iter(self._idle.values())).since + IDLE_SECONDS if self._idle else math.inf

    def close_idle(self) -> None:
        """Let go what was not used for IDLE_SECONDS, and the longest unused of too many."""
        now = trio.current_time()
        while self._idle and (len(self._idle) >= MAX_KEPT or self.idle_until <= now):
            self._idle.popitem(last=False)[1].stream.release()


async def ask_once(peer: PeerId, connection: MuxedConnection, question: Question, me: Contact) -> Answer:
    """One question to a stock node, on a stream of its own; raises TransportError or RemoteError."""
    stream = await open_stream(peer, connection, str(PROTOCOL_ID), early=encode_question(question, me))
    whole = False
    try:
        if isinstance(question, AddProvider):
            whole = True
            return Answer()  # the kad-dht specification has no answer to it; py-libp2p alone sends one
        frames = VarintFrames()
        while received := await stream.receive_some():
            for raw in frames.feed(received):
                answer = decode_answer(raw, question)
                whole = True
                return answer
        raise TransportError("the stream ended before the answer")
    finally:
        if whole:
            stream.release()
        else:
            with trio.CancelScope(shield=True):
                await stream.reset()
