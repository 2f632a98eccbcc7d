"""The Yamux machine on its own: frames, windows, limits, and any bytes a stranger may send."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.transport.yamux import Yamux
from daemon.transport.yamux_frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    INITIAL_WINDOW,
    MAX_CONTROL_FRAMES,
    MAX_DRAINED,
    MESSAGE_BYTES,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    Arrived,
    Effect,
    Finished,
    GoneAway,
    Opened,
    Pong,
    Refused,
    WasReset,
    YamuxConfig,
    YamuxFault,
)


def frame(kind: int, flags: int, stream: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack("!BBHII", 0, kind, flags, stream, length) + body


def data(stream: int, body: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, stream, len(body), body)


def syn(stream: int) -> bytes:
    return frame(WINDOW_UPDATE, SYN, stream, 0)


def sent(machine: Yamux) -> list[tuple[int, int, int, int]]:
    """The headers of all that `machine` has to send."""
    raw, headers, at = machine.take(1 << 30), [], 0
    while at < len(raw):
        _, kind, flags, stream, length = struct.unpack_from("!BBHII", raw, at)
        headers.append((kind, flags, stream, length))
        at += 12 + (length if kind == DATA else 0)
    return headers


def server(**config: int) -> Yamux:
    return Yamux(client=False, config=YamuxConfig(**config))


def client(**config: int) -> Yamux:
    return Yamux(client=True, config=YamuxConfig(**config))


def test_a_stream_opens_carries_bytes_both_ways_and_ends() -> None:
    ours, theirs = client(), server()
    stream = ours.open()
    assert stream == 1
    assert ours.send(1, b"hello")
    ours.finish(1)
    assert theirs.receive(ours.take(1 << 20)) == [Opened(1), Arrived(1, b"hello"), Finished(1)]
    assert theirs.send(1, b"bye")
    theirs.finish(1)
    assert ours.receive(theirs.take(1 << 20)) == [Arrived(1, b"bye"), Finished(1)]
    assert not ours.is_open(1)
    assert not theirs.is_open(1)
    assert ours.ended() == [1]
    assert ours.ended() == []


def test_each_side_has_its_own_ids() -> None:
    assert (client().open(), server().open()) == (1, 2)
    with pytest.raises(YamuxFault, match="not its to open"):
        server().receive(syn(2))
    with pytest.raises(YamuxFault, match="not its to open"):
        server().receive(syn(1) + syn(1))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (struct.pack("!BBHII", 1, DATA, 0, 1, 0), "version"),
        (frame(7, 0, 0, 0), "frame type"),
        (frame(DATA, 0, 0, 0), "stream 0"),
        (syn(1) + frame(DATA, 0, 1, INITIAL_WINDOW + 1), "window"),
        (frame(DATA, 0, 9, (16 << 20) + 1), "a frame of"),
        (syn(1) + frame(WINDOW_UPDATE, 0, 1, 0xFFFFFFFF), "4 GiB"),
    ],
    ids=["version", "type", "stream-zero", "window-overrun", "huge-frame", "window-overflow"],
)
def test_a_broken_rule_ends_the_session(raw: bytes, says: str) -> None:
    with pytest.raises(YamuxFault, match=says):
        server().receive(raw)


def test_the_window_is_judged_by_the_header_before_any_byte_is_kept() -> None:
    machine = server()
    machine.receive(syn(1) + data(1, b"x" * INITIAL_WINDOW))
    with pytest.raises(YamuxFault, match="window allows 0"):
        machine.receive(frame(DATA, 0, 1, 1))
    assert machine.held == INITIAL_WINDOW


def test_a_reader_that_keeps_up_earns_a_larger_window_up_to_the_limit() -> None:
    machine = server(max_window=1 << 20)
    machine.receive(syn(1))
    sent(machine)
    granted = INITIAL_WINDOW
    for _ in range(40):
        chunk = b"x" * (granted // 2)
        machine.receive(data(1, chunk))
        granted -= len(chunk)
        machine.consumed(1, len(chunk))
        granted += sum(length for kind, _, _, length in sent(machine) if kind == WINDOW_UPDATE)
        assert granted <= 1 << 20
    assert granted > 1 << 19
    assert machine.held == 0


def test_a_reader_that_stops_grants_nothing() -> None:
    machine = server()
    machine.receive(syn(1) + data(1, b"x" * INITIAL_WINDOW))
    assert [header for header in sent(machine) if header[3]] == []


def test_a_sender_stops_at_the_window_and_goes_on_when_it_widens() -> None:
    machine = client()
    machine.open()
    machine.send(1, b"x" * (INITIAL_WINDOW + 10))
    assert sum(length for kind, _, _, length in sent(machine) if kind == DATA) == INITIAL_WINDOW
    assert machine.pending(1) == 10
    assert not machine.has_output
    machine.receive(frame(WINDOW_UPDATE, 0, 1, 4))
    assert sent(machine) == [(DATA, 0, 1, 4)]
    machine.finish(1)
    machine.receive(frame(WINDOW_UPDATE, 0, 1, 100))
    assert sent(machine) == [(DATA, 0, 1, 6), (WINDOW_UPDATE, FIN, 1, 0)]


def test_a_token_does_not_wait_behind_bulk() -> None:
    machine = client()
    bulk, tokens = machine.open(), machine.open()
    assert bulk is not None
    assert tokens is not None
    machine.take(1 << 20)
    machine.send(bulk, b"x" * 250_000)
    machine.send(tokens, b"t")
    first = sent_streams(machine.take(100_000))
    assert tokens in first[:2]


def sent_streams(raw: bytes) -> list[int]:
    streams, at = [], 0
    while at < len(raw):
        _, kind, _, stream, length = struct.unpack_from("!BBHII", raw, at)
        streams.append(stream)
        at += 12 + (length if kind == DATA else 0)
    return streams


def test_streams_over_the_cap_are_refused_until_a_handler_ends() -> None:
    machine = server(max_inbound=2)
    assert machine.receive(syn(1) + syn(3) + syn(5)) == [Opened(1), Opened(3), Refused(5)]
    assert (WINDOW_UPDATE, RST, 5, 0) in sent(machine)
    machine.receive(frame(WINDOW_UPDATE, RST, 1, 0))
    assert machine.receive(syn(7)) == [Refused(7)]
    machine.retire(1)
    assert machine.receive(syn(9)) == [Opened(9)]


def test_opening_and_resetting_in_a_loop_frees_no_slot() -> None:
    machine = server(max_inbound=8)
    effects: list[Effect] = []
    for stream in range(1, 2001, 2):
        effects += machine.receive(syn(stream) + frame(WINDOW_UPDATE, RST, stream, 0))
        machine.take(1 << 20)
    assert len([effect for effect in effects if isinstance(effect, Opened)]) == 8


def test_our_own_streams_are_capped() -> None:
    machine = client(max_outbound=2)
    assert [machine.open(), machine.open(), machine.open()] == [1, 3, None]
    machine.reset(1)
    assert machine.open() == 5


def test_a_slot_may_be_refused_from_outside() -> None:
    machine = Yamux(False, YamuxConfig(), take_slot=lambda: False)
    assert machine.receive(syn(1)) == [Refused(1)]


def test_a_peer_that_asks_without_reading_is_cut_off() -> None:
    with pytest.raises(YamuxFault, match="reads nothing"):
        server().receive(frame(PING, SYN, 0, 1) * (MAX_CONTROL_FRAMES + 1))


def test_pings_are_answered_and_answers_are_told() -> None:
    machine = server()
    assert machine.receive(frame(PING, SYN, 0, 77) + frame(PING, ACK, 0, 5)) == [Pong(5)]
    assert sent(machine) == [(PING, ACK, 0, 77)]
    machine.ping(9)
    assert sent(machine) == [(PING, SYN, 0, 9)]


def test_going_away_is_told() -> None:
    assert server().receive(frame(GO_AWAY, 0, 0, 2)) == [GoneAway(2)]


def test_a_reset_drops_what_is_queued_and_what_arrives_later() -> None:
    machine = server()
    machine.receive(syn(1))
    machine.send(1, b"x" * 1000)
    machine.reset(1)
    assert [header for header in sent(machine) if header[0] == DATA] == []
    assert machine.receive(data(1, b"late")) == []
    assert not machine.send(1, b"more")


def test_bytes_before_a_reset_still_arrive() -> None:
    assert server().receive(syn(1) + data(1, b"last", RST)) == [Opened(1), Arrived(1, b"last"), WasReset(1)]


def test_a_released_stream_takes_a_little_more_and_is_then_reset() -> None:
    machine = server(max_window=4 << 20)
    machine.receive(syn(1) + data(1, b"unread"))
    machine.release(1)
    assert machine.held == 0
    effects: list[Effect] = []
    for _ in range(2 * MAX_DRAINED // 60_000):
        effects += machine.receive(data(1, b"x" * 60_000))
    assert effects == [WasReset(1)]
    assert (WINDOW_UPDATE, RST, 1, 0) in sent(machine)


def test_a_released_stream_still_ends_politely() -> None:
    machine = server()
    machine.receive(syn(1))
    machine.release(1)
    assert (WINDOW_UPDATE, FIN, 1, 0) in sent(machine)
    assert machine.receive(data(1, b"tail", FIN)) == [Finished(1)]
    assert not machine.is_open(1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=12))
def test_no_bytes_of_a_stranger_raise_anything_but_a_fault(parts: list[bytes]) -> None:
    machine = server()
    try:
        for part in parts:
            machine.receive(part)
            machine.take(1 << 16)
    except YamuxFault:
        pass
    assert 0 <= machine.held <= 32 * INITIAL_WINDOW


headers = st.tuples(
    st.integers(0, 4), st.sampled_from([0, SYN, ACK, FIN, RST, SYN | FIN, SYN | RST]), st.integers(0, 6), st.integers(0, 40)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(headers, max_size=30), st.integers(1, 50))
def test_frames_in_any_order_and_any_cut_mean_the_same(frames: list[tuple[int, int, int, int]], cut: int) -> None:
    raw = b"".join(frame(k, f, s, n, b"b" * n if k == DATA else b"") for k, f, s, n in frames)
    whole, pieces = outcome([raw]), outcome([raw[at : at + cut] for at in range(0, len(raw), cut)])
    assert whole == pieces


def outcome(parts: list[bytes]) -> tuple[dict[int, bytes], list[Effect], str]:
    machine, effects = server(), list[Effect]()
    try:
        for part in parts:
            effects += machine.receive(part)
    except YamuxFault as error:
        return {}, [], str(error)
    arrived: dict[int, bytes] = {}
    for effect in effects:
        if isinstance(effect, Arrived):
            arrived[effect.stream] = arrived.get(effect.stream, b"") + effect.chunk
    return arrived, [effect for effect in effects if not isinstance(effect, Arrived)], ""


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90_000)), min_size=1, max_size=25), st.integers(1, 300_000))
def test_everything_sent_arrives_once_and_in_order(writes: list[tuple[int, int]], batch: int) -> None:
    ours, theirs = client(), server()
    streams = [ours.open() for _ in range(4)]
    expected = {stream: b"" for stream in streams if stream is not None}
    for index, (which, size) in enumerate(writes):
        stream = streams[which]
        assert stream is not None
        payload = bytes([index % 251]) * size
        expected[stream] += payload
        ours.send(stream, payload)
    for stream in expected:
        ours.finish(stream)
    got = dict.fromkeys(expected, b"")
    finished: set[int] = set()
    for _ in range(10_000):
        moved = ours.take(batch)
        for effect in theirs.receive(moved):
            if isinstance(effect, Arrived):
                got[effect.stream] += effect.chunk
                theirs.consumed(effect.stream, len(effect.chunk))
            elif isinstance(effect, Finished):
                finished.add(effect.stream)
        back = theirs.take(batch)
        ours.receive(back)
        if not moved and not back:
            break
    assert got == expected
    assert finished == set(expected)
    assert theirs.held == 0


def test_what_is_taken_at_once_is_one_noise_message_whatever_leads_it() -> None:
    ours, theirs = client(), server()
    stream = ours.open()
    assert stream is not None
    ours.send(stream, bytes(200_000))
    ours.ping(7)
    sizes = []
    while batch := ours.take(MESSAGE_BYTES):
        sizes.append(len(batch))
        theirs.receive(batch)
    assert max(sizes) <= MESSAGE_BYTES
    assert sizes[:3] == [MESSAGE_BYTES] * 3
    assert theirs.held == 200_000


def test_a_small_chunk_never_keeps_the_message_that_brought_it() -> None:
    theirs = server()
    message = syn(1) + data(1, bytes(100)) + b"".join(frame(PING, ACK, 0, 0) for _ in range(100)) + data(1, bytes(2000))
    small, big = (effect.chunk for effect in theirs.receive(message) if isinstance(effect, Arrived))
    assert isinstance(small, bytes)
    assert isinstance(big, memoryview)
    assert (small, big) == (bytes(100), bytes(2000))
