"""Compressed frames: what is packed, what a bomb costs, and that calls do not notice."""

import random
import tracemalloc
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.rpc import RpcMachine
from protocol.rpc_events import Breach, CallEnded, IncomingCall, IncomingItem, NewCall
from protocol.rpc_frames import MAX_PACKED_RATIO, Cancel, Credit, End, Hello, Item, Packed, Request
from protocol.rpc_packing import CAPABILITY, LEAST_BYTES, pack, unpack
from protocol.wire.codec import Message, decode, encode
from protocol.wire.errors import Code, RemoteError
from protocol.wire.limits import MAX_FRAME_BYTES
from tests.protocol.test_rpc import breach, packed, pass_on

OFFERS = Hello(capabilities=(CAPABILITY,))
WORDS = random.Random(1)
TEXT = " ".join(f"{WORDS.choice(('model', 'peer', 'answer', 'token'))}{WORDS.randrange(300)}" for _ in range(9000)).encode()
NOISE = random.Random(2).randbytes(60_000)


def pair(opener_hello: Hello = OFFERS, acceptor_hello: Hello = OFFERS, packs: bool = True) -> tuple[RpcMachine, RpcMachine]:
    opener = RpcMachine(opener=True, hello=opener_hello, packs=lambda: packs)
    acceptor = RpcMachine(opener=False, hello=acceptor_hello, packs=lambda: packs)
    pass_on(acceptor, opener)
    pass_on(opener, acceptor)
    return opener, acceptor


def crossed(opener: RpcMachine, acceptor: RpcMachine, body: bytes) -> int:
    """How many bytes a request and its equal answer take on the line."""
    opener.start(NewCall("echo", body, 60.0), 0.0)
    sent = opener.take() + b"".join(iter(opener.take, b""))
    (call,) = acceptor.receive(sent, 0.0)
    assert isinstance(call, IncomingCall)
    assert call.body == body
    acceptor.end(call.call, call.body)
    answered = b"".join(iter(acceptor.take, b""))
    assert opener.receive(answered, 0.0) == [CallEnded(call.call, body)]
    return len(sent) + len(answered)


def test_text_takes_less_of_the_line_and_noise_and_small_bodies_as_much_as_ever() -> None:
    assert crossed(*pair(), TEXT) < 0.5 * 2 * len(TEXT)
    for body in (NOISE, TEXT[: LEAST_BYTES // 2], b""):
        assert crossed(*pair(), body) == crossed(*pair(packs=False), body)


@pytest.mark.parametrize(("opener", "acceptor"), [(Hello(), OFFERS), (OFFERS, Hello()), (Hello(), Hello())])
def test_only_who_offers_it_is_sent_packed_frames(opener: Hello, acceptor: Hello) -> None:
    size = crossed(*pair(opener, acceptor), TEXT)
    offering = [hello for hello in (opener, acceptor) if CAPABILITY in hello.capabilities]
    assert (size < 1.6 * len(TEXT)) == bool(offering)
    assert size > 1.2 * len(TEXT)


def test_items_are_packed_too_and_cost_the_credit_of_what_they_hold() -> None:
    opener, acceptor = pair()
    call = opener.start(NewCall("sum", b"", 60.0, more=True), 0.0)
    pass_on(opener, acceptor)
    sent = 0
    while opener.send_item(call, TEXT[:60_000]):
        sent += 1
    assert sent == 4, "as many as without"
    line = b"".join(iter(opener.take, b""))
    assert len(line) < 130_000
    assert [effect.body for effect in acceptor.receive(line, 0.0) if isinstance(effect, IncomingItem)] == [TEXT[:60_000]] * 4


def test_a_dense_item_is_not_packed_on_any_line() -> None:
    opener, acceptor = pair()
    call = opener.start(NewCall("sum", b"", 60.0, more=True), 0.0)
    pass_on(opener, acceptor)
    assert opener.send_item(call, TEXT[:60_000], dense=True)
    assert len(b"".join(iter(opener.take, b""))) > 60_000


@given(st.binary(max_size=40_000) | st.integers(1, 60_000).map(lambda size: TEXT[:size]))
def test_what_is_packed_is_unpacked_to_the_bit(raw: bytes) -> None:
    made = pack(raw)
    if made is not None:
        assert len(made) < 0.8 * len(raw)
        assert unpack(decode(Packed, made)) == raw


def lie(raw: bytes, size: int | None = None, **changes: bytes) -> Packed:
    return Packed(len(raw) if size is None else size, changes.get("body", zlib.compress(raw)))


ITEM = encode(Item(1, TEXT[:20_000]))
BOMB = zlib.compress(bytes(64 << 20), 9)

LIES = {
    "a bomb that says so": (Packed(MAX_FRAME_BYTES, BOMB[:30_000]), Breach.OVERSIZED),
    "a bomb that says less": (Packed(MAX_FRAME_BYTES, BOMB), Breach.MALFORMED),
    "more than 32 times": (lie(bytes(40_000)), Breach.OVERSIZED),
    "longer than it says": (lie(ITEM, len(ITEM) - 1), Breach.MALFORMED),
    "shorter than it says": (lie(ITEM, len(ITEM) + 1), Breach.MALFORMED),
    "cut": (lie(ITEM, body=zlib.compress(ITEM)[:-4]), Breach.MALFORMED),
    "with more behind it": (lie(ITEM, body=zlib.compress(ITEM) + b"x"), Breach.MALFORMED),
    "not compressed": (lie(ITEM, body=ITEM), Breach.MALFORMED),
    "empty": (Packed(1, b""), Breach.OVERSIZED),
    "packed twice": (lie(encode(lie(ITEM))), Breach.MALFORMED),
    "a hello": (lie(encode(OFFERS)), Breach.MALFORMED),
    "a cancel": (lie(encode(Cancel(1))), Breach.MALFORMED),
    "a credit": (lie(encode(Credit(1, 5))), Breach.MALFORMED),
    "no frame": (lie(b"\xc1" * 50), Breach.MALFORMED),
    "a body of a frame too large": (lie(encode(Request(1, "x", 1000, TEXT, True, 9))), Breach.MALFORMED),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_closes_the_link(name: str) -> None:
    sent, reason = LIES[name]
    machine = RpcMachine(opener=False, hello=OFFERS)
    machine.receive(packed(OFFERS), 0.0)
    machine.receive(packed(Request(1, "sum", 1000, more=True)), 0.0)
    assert breach(machine.receive(packed(sent), 0.0)) is reason


def test_a_packed_frame_that_was_not_offered_closes_the_link() -> None:
    machine = RpcMachine(opener=False)
    machine.receive(packed(OFFERS), 0.0)
    assert breach(machine.receive(packed(lie(encode(Request(1, "sum", 1000, TEXT)))), 0.0)) is Breach.MALFORMED


def test_a_bomb_never_takes_more_memory_than_a_frame() -> None:
    """64 MiB of zeros within 64 KiB: the ratio refuses it unread, and what claims less is inflated to its claim alone."""
    body = BOMB
    assert len(body) * MAX_PACKED_RATIO > MAX_FRAME_BYTES
    tracemalloc.start()
    try:
        for size in (MAX_FRAME_BYTES, 20_000, 1):
            with pytest.raises(RemoteError) as refused:
                unpack(Packed(size, body))
            assert refused.value.code in (Code.OVERSIZED, Code.MALFORMED)
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_FRAME_BYTES
    finally:
        tracemalloc.stop()


def test_order_is_kept_where_some_frames_of_a_call_are_packed() -> None:
    opener, acceptor = pair()
    call = opener.start(NewCall("sum", b"", 60.0, more=True), 0.0)
    bodies = [TEXT[:30_000], b"a", NOISE[:30_000], b"b", TEXT[:9_000]]
    for body in bodies:
        assert opener.send_item(call, body)
    opener.end(call)
    items = [effect.body for effect in pass_on(opener, acceptor) if isinstance(effect, IncomingItem)]
    assert items == bodies
    assert all(before is not after for before, after in pairwise(items))


def test_golden() -> None:
    assert encode(Packed(9000, b"\x78\x9c")) == bytes.fromhex("9308cd2328c402789c")
    frames: list[Message] = [End(7, TEXT[:9000])]
    for frame in frames:
        raw = encode(frame)
        made = pack(raw)
        assert made is not None
        assert zlib.decompress(decode(Packed, made).body) == raw
