"""The RPC machine by tables: what each side may send, what it costs to break that, credit, deadlines and the order of frames."""

import pytest

from protocol.rpc import MAX_UNREAD_BYTES, RpcMachine
from protocol.rpc_events import (
    FRAMES_AT_ONCE,
    Breach,
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
from protocol.rpc_frames import (
    ITEM_OVERHEAD_BYTES,
    MAX_BODY_BYTES,
    MAX_OPEN_CALLS,
    MIN_WINDOW_BYTES,
    WINDOW_BYTES,
    Cancel,
    Credit,
    End,
    Fault,
    Hello,
    Item,
    Request,
)
from protocol.wire.codec import FrameReader, Message, encode, frame
from protocol.wire.errors import Code, LocalError, RemoteError

LATER = 60.0
CHUNK = 60_000


def packed(*frames: Message) -> bytes:
    return b"".join(frame(encode(one)) for one in frames)


def pair(hello: Hello = Hello()) -> tuple[RpcMachine, RpcMachine]:  # noqa: B008 - frozen
    opener, acceptor = RpcMachine(opener=True), RpcMachine(opener=False, hello=hello)
    pass_on(acceptor, opener)
    pass_on(opener, acceptor)
    return opener, acceptor


def pass_on(sender: RpcMachine, receiver: RpcMachine, now: float = 0.0) -> list[Effect]:
    effects: list[Effect] = []
    while batch := sender.take():
        effects += receiver.receive(batch, now)
    return effects


def greeted(*, opener: bool = False, hello: Hello = Hello()) -> RpcMachine:  # noqa: B008 - frozen
    machine = RpcMachine(opener=opener, hello=hello)
    assert machine.receive(packed(Hello()), 0.0) == []
    return machine


def test_of_many_small_frames_the_rest_waits_for_the_next_turn() -> None:
    machine = greeted()
    many = FRAMES_AT_ONCE + 10
    first = machine.receive(packed(REQUEST, *[Credit(1, 1)] * (2 * many - 1)), 0.0)
    assert len(first) == FRAMES_AT_ONCE
    assert len(machine.behind) == 2 * many - FRAMES_AT_ONCE
    second = machine.receive(packed(Cancel(1)), 0.0)
    assert (len(second), second[-1]) == (FRAMES_AT_ONCE, CreditAvailable(1)), "what came later waits its turn"
    third = machine.receive(b"", 0.0)
    assert (len(third), code_of(third[-1]), machine.behind) == (21, Code.CANCELLED, [])


def test_nothing_waits_on_a_broken_link() -> None:
    machine = greeted()
    assert breach(machine.receive(packed(REQUEST, REQUEST, *[Credit(1, 1)] * 2 * FRAMES_AT_ONCE), 0.0)) is Breach.CALL_ID
    assert (machine.behind, machine.receive(b"", 0.0)) == ([], [])


def breach(effects: list[Effect]) -> Breach:
    last = effects[-1]
    assert isinstance(last, LinkBroken)
    return last.breach


def code_of(effect: Effect) -> Code:
    assert isinstance(effect, CallFailed)
    return effect.error.code


def test_a_unary_call_travels_whole() -> None:
    opener, acceptor = pair()
    call = opener.start(NewCall("infer", b"question", 7.5, priority=1, traceparent="00-ab-cd-01"), 5.0)
    assert pass_on(opener, acceptor, 100.0) == [IncomingCall(call, "infer", b"question", 102.5, False, 1, "00-ab-cd-01")]
    acceptor.end(call, b"answer")
    assert pass_on(acceptor, opener) == [CallEnded(call, b"answer")]
    assert (opener.open_calls, acceptor.open_calls) == (0, 0)


def test_a_stream_keeps_its_order_and_byte_by_byte_delivery_changes_nothing() -> None:
    opener, acceptor = pair()
    call = opener.start(NewCall("infer", b"", LATER), 0.0)
    pass_on(opener, acceptor)
    for item in (b"one", b"", bytes(CHUNK), b"two"):
        assert acceptor.send_item(call, item)
    acceptor.end(call, b"last")
    effects = [effect for byte in iter(acceptor.take, b"") for at in byte for effect in opener.receive(bytes([at]), 0.0)]
    assert effects == [*(IncomingItem(call, item) for item in (b"one", b"", bytes(CHUNK), b"two")), CallEnded(call, b"last")]


def test_items_of_the_opener_end_before_the_answer() -> None:
    opener, acceptor = pair()
    call = opener.start(NewCall("round", b"", LATER, more=True), 0.0)
    assert opener.send_item(call, b"ballot")
    opener.end(call)
    assert pass_on(opener, acceptor)[1:] == [IncomingItem(call, b"ballot"), IncomingEnd(call, b"")]
    acceptor.end(call, b"thanks")
    assert pass_on(acceptor, opener) == [CallEnded(call, b"thanks")]


def test_the_first_items_of_an_opener_wait_for_the_hello() -> None:
    opener = RpcMachine(opener=True)
    call = opener.start(NewCall("m", b"", LATER, more=True), 0.0)
    assert not opener.send_item(call, b"early")
    assert opener.receive(packed(Hello()), 0.0) == [CreditAvailable(call)]
    assert opener.send_item(call, b"early")


def test_a_fault_brings_its_code_message_and_hint() -> None:
    opener, acceptor = pair()
    call = opener.start(NewCall("infer", b"", LATER), 0.0)
    pass_on(opener, acceptor)
    acceptor.fault(call, RemoteError(Code.OVERLOADED, "x" * 9000, retry_after=1.5))
    (failed,) = pass_on(acceptor, opener)
    assert isinstance(failed, CallFailed)
    assert (failed.error.code, failed.error.retry_after, len(failed.error.message)) == (Code.OVERLOADED, 1.5, 512)


def test_an_unknown_fault_code_reads_as_internal() -> None:
    machine = greeted(opener=True)
    call = machine.start(NewCall("m", b"", LATER), 0.0)
    assert code_of(machine.receive(packed(Fault(call, "from_the_future")), 0.0)[0]) is Code.INTERNAL


def test_a_cancel_reaches_the_acceptor_and_the_late_answer_is_no_breach() -> None:
    opener, acceptor = pair()
    call = opener.start(NewCall("infer", b"", LATER), 0.0)
    pass_on(opener, acceptor)
    acceptor.send_item(call, bytes(CHUNK))
    acceptor.end(call, bytes(MAX_BODY_BYTES))
    opener.cancel(call)
    assert pass_on(acceptor, opener) == []
    assert pass_on(opener, acceptor) == []
    assert not opener.broken
    assert not acceptor.broken


def test_a_cancel_stops_what_the_acceptor_still_has_queued() -> None:
    opener, acceptor = pair()
    call = opener.start(NewCall("infer", b"", LATER), 0.0)
    pass_on(opener, acceptor)
    for _ in range(4):
        acceptor.send_item(call, bytes(CHUNK))
    opener.cancel(call)
    assert [code_of(effect) for effect in pass_on(opener, acceptor)] == [Code.CANCELLED]
    assert acceptor.take() == b""


def test_a_call_cancelled_before_it_left_is_never_heard_of() -> None:
    opener, acceptor = pair()
    opener.cancel(opener.start(NewCall("infer", b"", LATER), 0.0))
    kept = opener.start(NewCall("infer", b"", LATER), 0.0)
    effects = pass_on(opener, acceptor)
    assert [effect.call for effect in effects if isinstance(effect, IncomingCall)] == [kept]


def test_deadlines_end_a_call_on_both_sides() -> None:
    opener, acceptor = pair()
    call = opener.start(NewCall("infer", b"", 2.0), 0.0)
    pass_on(opener, acceptor, 50.0)
    assert (opener.wake_at, acceptor.wake_at) == (2.0, 52.0)
    assert opener.tick(1.9) == acceptor.tick(51.9) == []
    assert code_of(acceptor.tick(52.0)[0]) is Code.DEADLINE
    assert code_of(opener.tick(2.0)[0]) is Code.DEADLINE
    assert pass_on(acceptor, opener) == pass_on(opener, acceptor) == []
    assert opener.wake_at == acceptor.wake_at == float("inf")
    acceptor.end(call, b"too late")
    assert not acceptor.wants_to_write


def test_a_deadline_that_passed_already_is_refused_at_once() -> None:
    opener, _ = pair()
    with pytest.raises(RemoteError) as refused:
        opener.start(NewCall("infer", b"", 5.0), 5.0)
    assert refused.value.code is Code.DEADLINE


def test_a_slow_reader_stops_its_own_call_alone() -> None:
    opener, acceptor = pair()
    slow = opener.start(NewCall("infer", b"", LATER), 0.0)
    quick = opener.start(NewCall("infer", b"", LATER), 0.0)
    pass_on(opener, acceptor)
    sent = 0
    while acceptor.send_item(slow, bytes(CHUNK)):
        sent += 1
    assert sent == WINDOW_BYTES // (CHUNK + ITEM_OVERHEAD_BYTES)
    assert acceptor.send_item(quick, b"token")
    pass_on(acceptor, opener)
    opener.consumed(slow, CHUNK)
    assert pass_on(opener, acceptor) == []
    opener.consumed(slow, CHUNK)
    opener.consumed(slow, CHUNK)
    assert pass_on(opener, acceptor) == [CreditAvailable(slow)]
    assert acceptor.send_item(slow, bytes(CHUNK))


def test_empty_items_are_not_free() -> None:
    opener, acceptor = pair()
    call = opener.start(NewCall("infer", b"", LATER), 0.0)
    pass_on(opener, acceptor)
    sent = 0
    while acceptor.send_item(call, b""):
        sent += 1
    assert sent == WINDOW_BYTES // ITEM_OVERHEAD_BYTES


def test_small_frames_overtake_a_bulk_call_but_not_their_own() -> None:
    opener, acceptor = pair()
    bulk = opener.start(NewCall("claims.range", b"", LATER), 0.0)
    tokens = opener.start(NewCall("infer", b"", LATER), 0.0)
    pass_on(opener, acceptor)
    for _ in range(3):
        acceptor.send_item(bulk, bytes(CHUNK))
    acceptor.end(bulk, b"end")
    acceptor.send_item(tokens, b"token")
    acceptor.end(tokens, b"")
    kinds = [(type(effect), effect.call) for effect in pass_on(acceptor, opener) if not isinstance(effect, LinkBroken)]
    assert kinds == [(IncomingItem, tokens), (CallEnded, tokens), *[(IncomingItem, bulk)] * 3, (CallEnded, bulk)]


def test_a_write_holds_at_most_one_bulk_frame_beyond_its_size() -> None:
    opener, acceptor = pair()
    call = opener.start(NewCall("m", b"", LATER), 0.0)
    pass_on(opener, acceptor)
    for _ in range(4):
        acceptor.send_item(call, bytes(CHUNK))
    sizes = [len(batch) for batch in iter(acceptor.take, b"")]
    assert len(sizes) == 2
    assert max(sizes) < 2 * 64 * 1024


def test_a_constant_flow_of_small_frames_does_not_starve_bulk() -> None:
    opener, acceptor = pair()
    bulk = opener.start(NewCall("m", b"", LATER), 0.0)
    small = [opener.start(NewCall("m", b"", LATER), 0.0) for _ in range(200)]
    pass_on(opener, acceptor)
    acceptor.send_item(bulk, bytes(CHUNK))
    for call in small:
        acceptor.send_item(call, bytes(1000))
    assert any(isinstance(effect, IncomingItem) and effect.call == bulk for effect in opener.receive(acceptor.take(), 0.0))


def test_requests_leave_in_the_order_of_their_ids() -> None:
    opener, acceptor = pair()
    first = opener.start(NewCall("m", bytes(200_000), LATER), 0.0)
    second = opener.start(NewCall("m", b"small", LATER), 0.0)
    calls = [effect.call for effect in pass_on(opener, acceptor) if isinstance(effect, IncomingCall)]
    assert calls == [first, second]


def test_a_lost_link_fails_every_open_call_with_gone() -> None:
    opener, acceptor = pair()
    calls = [opener.start(NewCall("m", b"", LATER), 0.0) for _ in range(3)]
    pass_on(opener, acceptor)
    for machine in (opener, acceptor):
        failed = machine.lost("reset")
        assert [(effect.call, code_of(effect)) for effect in failed if isinstance(effect, CallFailed)] == [
            (call, Code.GONE) for call in calls
        ]
    with pytest.raises(RemoteError) as refused:
        opener.start(NewCall("m", b"", LATER), 0.0)
    assert refused.value.code is Code.GONE


REQUEST = Request(1, "m", 1000)
MORE = Request(1, "m", 1000, b"", True)

ACCEPTOR_BREACHES = [
    ("no hello", False, packed(REQUEST), Breach.NO_HELLO),
    ("two hellos", True, packed(Hello()), Breach.NO_HELLO),
    ("a future version only", False, packed(Hello(version=9, oldest=2)), Breach.VERSION),
    ("a used id", True, packed(REQUEST, End(1), REQUEST), Breach.WRONG_SIDE),
    ("the same id", True, packed(REQUEST, REQUEST), Breach.CALL_ID),
    ("an id going back", True, packed(Request(5, "m", 1000), Request(4, "m", 1000)), Breach.CALL_ID),
    ("an item where none may follow", True, packed(REQUEST, Item(1, b"x")), Breach.WRONG_SIDE),
    ("an item after the end", True, packed(MORE, End(1), Item(1, b"x")), Breach.WRONG_SIDE),
    ("two ends", True, packed(MORE, End(1), End(1)), Breach.WRONG_SIDE),
    ("a fault", True, packed(REQUEST, Fault(1, "gone")), Breach.WRONG_SIDE),
    ("a call never opened", True, packed(Cancel(7)), Breach.STRAY),
    ("cancels without end", True, packed(REQUEST, *[Cancel(1)] * 500), Breach.STRAY),
    ("credit without end", True, packed(REQUEST, *[Credit(1, 1 << 31)] * 2), Breach.CREDIT),
    ("more items than credit", True, packed(MORE, *[Item(1, bytes(CHUNK))] * 5), Breach.CREDIT),
    ("an oversized item", True, packed(MORE, Item(1, bytes(70_000))), Breach.MALFORMED),
    ("an empty method", True, packed(Request(1, "", 1000)), Breach.MALFORMED),
    ("a method that looks like a flag", True, packed(Request(1, "-x", 1000)), Breach.MALFORMED),
    ("a long method", True, packed(Request(1, "m" * 49, 1000)), Breach.MALFORMED),
    ("a long traceparent", True, packed(Request(1, "m", 1000, b"", False, 4, "0" * 65)), Breach.MALFORMED),
    ("no time left", True, packed(Request(1, "m", 0)), Breach.MALFORMED),
    ("call zero", True, packed(Request(0, "m", 1000)), Breach.MALFORMED),
    ("an unknown tag", True, frame(b"\x92\x63\x01"), Breach.MALFORMED),
    ("not an array", True, frame(b"\xc0"), Breach.MALFORMED),
    ("an empty frame", True, frame(b""), Breach.MALFORMED),
    ("a frame beyond 1 MiB", True, b"\xff\xff\xff\xff", Breach.OVERSIZED),
    ("http", False, b"GET / HTTP/1.1\r\n\r\n", Breach.OVERSIZED),
]


@pytest.mark.parametrize(
    ("hello_first", "received", "reason"), [row[1:] for row in ACCEPTOR_BREACHES], ids=[row[0] for row in ACCEPTOR_BREACHES]
)
def test_a_breach_closes_the_link(hello_first: bool, received: bytes, reason: Breach) -> None:
    machine = greeted() if hello_first else RpcMachine(opener=False)
    effects = machine.receive(received, 0.0)
    assert breach(effects) is reason
    assert machine.broken
    assert machine.receive(packed(Hello()), 0.0) == []
    assert machine.take() == b""


@pytest.mark.parametrize(
    ("received", "reason"),
    [
        (packed(REQUEST), Breach.WRONG_SIDE),
        (packed(Cancel(1)), Breach.WRONG_SIDE),
        (packed(End(1), End(1)), Breach.STRAY),
        (packed(End(2)), Breach.STRAY),
        (packed(*[Item(1, bytes(CHUNK))] * 5), Breach.CREDIT),
    ],
)
def test_an_acceptor_that_breaks_the_contract_is_dropped(received: bytes, reason: Breach) -> None:
    machine = greeted(opener=True)
    machine.start(NewCall("m", b"", LATER), 0.0)
    machine.take()
    assert breach(machine.receive(received, 0.0)) is reason


def test_the_calls_before_a_breach_fail_with_gone() -> None:
    machine = greeted()
    machine.receive(packed(REQUEST), 0.0)
    effects = machine.receive(packed(Hello()), 0.0)
    assert code_of(effects[0]) is Code.GONE
    assert breach(effects) is Breach.NO_HELLO


def test_open_calls_are_bounded_on_both_sides() -> None:
    opener, acceptor = pair()
    for _ in range(MAX_OPEN_CALLS):
        opener.start(NewCall("m", b"", LATER), 0.0)
    with pytest.raises(RemoteError) as refused:
        opener.start(NewCall("m", b"", LATER), 0.0)
    assert refused.value.code is Code.OVERLOADED
    pass_on(opener, acceptor)
    assert acceptor.open_calls == MAX_OPEN_CALLS
    assert breach(acceptor.receive(packed(Request(999, "m", 1000)), 0.0)) is Breach.TOO_MANY_CALLS


def test_a_peer_that_takes_fewer_calls_says_so_first_and_refuses_the_rest() -> None:
    opener, _ = pair(Hello(max_calls=2))
    for _ in range(2):
        opener.start(NewCall("m", b"", LATER), 0.0)
    with pytest.raises(RemoteError):
        opener.start(NewCall("m", b"", LATER), 0.0)
    hasty = greeted(hello=Hello(max_calls=2))
    effects = hasty.receive(packed(*(Request(call, "m", 1000) for call in (1, 2, 3))), 0.0)
    assert [effect.call for effect in effects if isinstance(effect, IncomingCall)] == [1, 2]
    assert not hasty.broken


def test_open_request_bytes_are_bounded_on_both_sides_and_freed_with_their_calls() -> None:
    opener, acceptor = pair()
    calls = [opener.start(NewCall("m", bytes(MAX_BODY_BYTES), LATER), 0.0) for _ in range(8)]
    with pytest.raises(RemoteError) as refused:
        opener.start(NewCall("m", bytes(MAX_BODY_BYTES), LATER), 0.0)
    assert refused.value.code is Code.OVERLOADED
    pass_on(opener, acceptor)
    for call in calls:
        acceptor.end(call)
    assert len(pass_on(acceptor, opener)) == 8
    opener.start(NewCall("m", bytes(MAX_BODY_BYTES), LATER), 0.0)
    assert len(pass_on(opener, acceptor)) == 1
    greedy = greeted()
    effects: list[Effect] = []
    for call in range(1, 10):
        effects = greedy.receive(packed(Request(call, "m", 1000, bytes(MAX_BODY_BYTES))), 0.0)
    assert breach(effects) is Breach.TOO_MANY_BYTES


def test_a_peer_that_asks_and_never_reads_is_dropped() -> None:
    machine = greeted()
    call = 0
    effects: list[Effect] = []
    while not effects or not isinstance(effects[-1], LinkBroken):
        call += 1
        assert machine.queued <= MAX_UNREAD_BYTES + 1024
        effects = machine.receive(packed(Request(call, "m", 1000)), 0.0)
        machine.fault(call, RemoteError(Code.UNSUPPORTED, "x" * 500))
    assert breach(effects) is Breach.NOT_READING


def test_finished_deadlines_do_not_pile_up() -> None:
    opener, acceptor = pair()
    first = opener.start(NewCall("m", b"", 1e6), 0.0)
    pass_on(opener, acceptor)
    for _ in range(5000):
        call = opener.start(NewCall("m", b"", 2e6), 0.0)
        pass_on(opener, acceptor)
        acceptor.end(call)
        pass_on(acceptor, opener)
    assert opener.open_calls == 1
    assert len(opener._deadlines) < 1000
    assert first in {call for _, call in opener._deadlines}


MISUSES = {
    "an acceptor starts": lambda opener, acceptor: acceptor.start(NewCall("m", b"", LATER), 0.0),
    "a huge body": lambda opener, acceptor: opener.start(NewCall("m", bytes(MAX_BODY_BYTES + 1), LATER), 0.0),
    "a huge item": lambda opener, acceptor: acceptor.send_item(1, bytes(70_000)),
    "a huge final body": lambda opener, acceptor: acceptor.end(1, bytes(MAX_BODY_BYTES + 1)),
    "an item of a unary opener": lambda opener, acceptor: opener.send_item(1, b""),
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES.keys())
def test_our_own_misuse_is_a_local_error_and_sends_nothing(misuse) -> None:  # type: ignore[no-untyped-def]
    opener, acceptor = pair()
    opener.start(NewCall("m", b"", LATER), 0.0)
    pass_on(opener, acceptor)
    with pytest.raises(LocalError):
        misuse(opener, acceptor)
    assert not opener.wants_to_write
    assert not acceptor.wants_to_write


def test_the_largest_bodies_fit_a_frame() -> None:
    biggest = Request(2**53 - 1, "m" * 48, 86_400_000, bytes(MAX_BODY_BYTES), True, 7, "0" * 64)
    assert FrameReader().feed(packed(biggest))
    assert MIN_WINDOW_BYTES >= 65_536 + ITEM_OVERHEAD_BYTES
