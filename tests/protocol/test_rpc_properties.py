"""Two RPC machines joined by byte pipes, under random interleavings; and one machine under arbitrary bytes."""

from collections import defaultdict, deque
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.rpc import RpcMachine
from protocol.rpc_events import (
    CallEnded,
    CallFailed,
    CreditAvailable,
    Effect,
    IncomingCall,
    IncomingEnd,
    IncomingItem,
    LinkBroken,
    NewCall,
)
from protocol.rpc_frames import MIN_WINDOW_BYTES, AnyFrame, Cancel, Credit, End, Fault, Hello, Item, Request
from protocol.wire.codec import encode, frame
from protocol.wire.errors import Code, RemoteError

pytestmark = pytest.mark.slow

SIZES = (0, 1, 5000, 65_000)


class Pair:
    """An opener and an acceptor, the bytes under way between them, and what each application saw."""

    def __init__(self) -> None:
        hello = Hello(window=MIN_WINDOW_BYTES)
        self.now = 0.0
        self.machines = (RpcMachine(opener=True, hello=hello), RpcMachine(opener=False, hello=hello))
        self.pipes = (bytearray(), bytearray())
        self.sent: tuple[dict[int, list[bytes]], ...] = (defaultdict(list), defaultdict(list))
        self.received: tuple[dict[int, list[bytes]], ...] = (defaultdict(list), defaultdict(list))
        self.untaken: tuple[dict[int, deque[bytes]], ...] = (defaultdict(deque), defaultdict(deque))
        self.open: tuple[dict[int, bool], ...] = ({}, {})
        self.bodies: dict[int, bytes] = {}
        self.finals: dict[int, bytes] = {}
        self.outcomes: dict[int, bytes | Code] = {}
        self.left: set[int] = set()
        self.finished: set[int] = set()
        self.complete: set[int] = set()
        self.serial = 0

    def body(self, size: int) -> bytes:
        self.serial += 1
        return b"%d:" % self.serial + bytes(size)

    def step(self, op: str, pick: int, size: int) -> None:
        side = pick % 2
        calls = sorted(self.open[side])
        call = calls[(pick // 2) % len(calls)] if calls else None
        match op:
            case "start":
                body = self.body(size)
                deadline = self.now + (30 if pick % 3 else 5)
                started = self.machines[0].start(NewCall("m", body, deadline, more=bool(pick % 2)), self.now)
                self.open[0][started] = bool(pick % 2)
                self.bodies[started] = body
            case "item" if call is not None and (side == 1 or self.open[0][call]):
                body = self.body(size)
                if self.machines[side].send_item(call, body):
                    self.sent[side][call].append(body)
            case "end" if call is not None:
                self.end(side, call, self.body(size))
            case "fault" if call is not None and side == 1:
                self.machines[1].fault(call, RemoteError(Code.REFUSED, "no"))
                self.finals[call] = b""
                del self.open[1][call]
            case "cancel" if call is not None and side == 0:
                self.machines[0].cancel(call)
                self.left.add(call)
                del self.open[0][call]
            case "take" if call is not None and self.untaken[side][call]:
                self.machines[side].consumed(call, len(self.untaken[side][call].popleft()))
            case "flush":
                self.pipes[side].extend(self.machines[side].take())
            case "deliver":
                self.deliver(side, size * 3 + 1)
            case "wait":
                self.now += 1
                for which in (0, 1):
                    self.see(which, self.machines[which].tick(self.now))

    def end(self, side: int, call: int, body: bytes) -> None:
        if side == 1:
            self.finals[call] = body
            self.machines[1].end(call, body)
            del self.open[1][call]
        elif self.open[0][call] and call not in self.finished:
            self.machines[0].end(call, body)
            self.open[0][call] = False
            self.finished.add(call)

    def deliver(self, side: int, count: int) -> None:
        moved = bytes(self.pipes[side][:count])
        del self.pipes[side][:count]
        self.see(1 - side, self.machines[1 - side].receive(moved, self.now))

    def see(self, side: int, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case IncomingCall(call, _, body):
                    assert side == 1
                    assert self.bodies[call] == body
                    self.open[1][call] = True
                case IncomingItem(call, body):
                    self.received[side][call].append(body)
                    self.untaken[side][call].append(body)
                    count = len(self.received[side][call])
                    assert self.received[side][call] == self.sent[1 - side][call][:count]
                case IncomingEnd(call, _):
                    assert self.received[1][call] == self.sent[0][call]
                    self.complete.add(call)
                case CallEnded(call, body):
                    assert call not in self.outcomes
                    self.outcomes[call] = body
                    del self.open[0][call]
                case CallFailed(call, error):
                    if side == 0:
                        assert call not in self.outcomes
                        self.outcomes[call] = error.code
                    self.open[side].pop(call, None)
                case CreditAvailable():
                    pass
                case LinkBroken():
                    raise AssertionError(effect)

    def settle(self) -> None:
        """Deliver and take everything until nothing moves."""
        moved = True
        while moved:
            moved = False
            for side in (0, 1):
                for call, items in self.untaken[side].items():
                    while items:
                        self.machines[side].consumed(call, len(items.popleft()))
                while self.machines[side].wants_to_write:
                    self.pipes[side].extend(self.machines[side].take())
                if self.pipes[side]:
                    moved = True
                    self.deliver(side, 1 << 30)


OPS = ("start", "item", "item", "item", "item", "end", "fault", "cancel", "take", "take", "flush", "flush", "deliver", "deliver")
RARE = {"end": 0.3, "fault": 0.1, "cancel": 0.2, "start": 0.5}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=True))
def test_nothing_is_lost_doubled_or_reordered_within_a_call(rng: Random) -> None:
    pair = Pair()
    for _ in range(400):
        op = rng.choice(OPS) if rng.random() < 0.99 else "wait"
        if rng.random() < RARE.get(op, 1):
            pair.step(op, rng.randrange(12), rng.choice(SIZES))
    pair.settle()
    for call, outcome in pair.outcomes.items():
        if isinstance(outcome, bytes):
            assert outcome == pair.finals[call]
            assert pair.received[0][call] == pair.sent[1][call]
        elif outcome is Code.REFUSED:
            assert pair.received[0][call] == pair.sent[1][call]
    for call in pair.open[1]:
        pair.machines[1].end(call, b"last")
    pair.open[1].clear()
    pair.settle()
    assert set(pair.bodies) == set(pair.outcomes) | pair.left
    assert pair.machines[0].open_calls == pair.machines[1].open_calls == 0
    assert pair.machines[0].queued == pair.machines[1].queued == 0


SMALL = st.integers(0, 4)
FRAMES = st.one_of(
    st.builds(Hello),
    st.builds(Request, SMALL, st.sampled_from(["m", "", "M", "x" * 99]), SMALL, st.binary(max_size=9), st.booleans()),
    st.builds(Item, SMALL, st.binary(max_size=9)),
    st.builds(End, SMALL, st.binary(max_size=9)),
    st.builds(Fault, SMALL, st.sampled_from(["gone", "new_code"])),
    st.builds(Cancel, SMALL),
    st.builds(Credit, SMALL, st.sampled_from([0, 1, 1 << 31])),
)
NOISE = st.one_of(st.binary(max_size=40), st.binary(max_size=40).map(frame), FRAMES.map(lambda f: frame(encode(f))))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.booleans(), st.booleans(), st.lists(NOISE, max_size=12))
def test_any_bytes_lead_to_effects_or_a_close_and_nothing_else(opener: bool, greeted: bool, noise: list[bytes]) -> None:
    machine = RpcMachine(opener=opener)
    if opener:
        for more in (False, True, True):
            machine.start(NewCall("m", b"", 10.0, more=more), 0.0)
        machine.take()
        machine.cancel(2)
    if greeted:
        machine.receive(frame(encode(Hello())), 0.0)
    broken = 0
    for chunk in noise:
        effects = machine.receive(chunk, 1.0)
        broken += sum(isinstance(effect, LinkBroken) for effect in effects)
        machine.tick(1.0)
        machine.take()
    assert broken == machine.broken
    assert machine.open_calls == 0 or not broken


def test_every_tag_is_known_and_distinct() -> None:
    assert sorted(kind.__struct_config__.tag for kind in AnyFrame.__args__) == [1, 2, 3, 4, 5, 6, 7, 8]
