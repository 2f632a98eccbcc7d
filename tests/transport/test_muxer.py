"""The Yamux driver over an in-memory pipe: cancelled writes, slow readers, silent peers, memory and the manner of closing."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)

from daemon.transport.muxed_stream import MuxedStream
from daemon.transport.muxer import BATCH_BYTES, EFFECTS_AT_ONCE, MuxedConnection
from daemon.transport.muxer_settings import InboundSlots, MuxerSettings, ReceiveMemory
from daemon.transport.yamux_frames import ACK, DATA, FIN, HEADER, PING, SYN, WINDOW_UPDATE, YamuxConfig
from protocol.wire.envelope import public_bytes
from protocol.wire.ids import peer_id_of

PEER = ID.from_base58(peer_id_of(public_bytes(Ed25519PrivateKey.from_private_bytes(b"\1" * 32))))


class Pipe:
    """A secured connection over memory, as the muxer sees one; `hold` keeps what is written from arriving."""

    def __init__(self, stream: trio.StapledStream, is_initiator: bool) -> None:
        self.stream = stream
        self.is_initiator = is_initiator
        self.closed = False

    async def read(self, n: int | None = None) -> bytes:
        return bytes(await self.stream.receive_some(n))

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def close(self) -> None:
        self.closed = True
        await self.stream.aclose()

    def get_remote_address(self) -> None:
        return None


def default_settings() -> MuxerSettings:
    return MuxerSettings(YamuxConfig(), ReceiveMemory(256 << 20, 2 << 20))


Connect = Callable[..., Any]


@pytest.fixture
def linked() -> Connect:
    """`async with linked() as (client, server)`: two connections over one lockstep pipe."""

    @asynccontextmanager
    async def link(
        client: MuxerSettings | None = None, server: MuxerSettings | None = None
    ) -> AsyncIterator[tuple[MuxedConnection, MuxedConnection]]:
        left, right = trio.testing.memory_stream_pair()
        first = MuxedConnection(Pipe(left, True), PEER, client or default_settings())  # type: ignore[arg-type]
        second = MuxedConnection(Pipe(right, False), PEER, server or default_settings())  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.start)
            nursery.start_soon(second.start)
            await first.event_started.wait()
            await second.event_started.wait()
            yield first, second
            nursery.cancel_scope.cancel()

    return link


@pytest.fixture
def raw() -> Connect:
    """`async with raw() as (connection, wire)`: one connection, and the bare pipe that a hostile peer writes to."""

    @asynccontextmanager
    async def one(settings: MuxerSettings | None = None) -> AsyncIterator[tuple[MuxedConnection, Any]]:
        left, right = trio.testing.memory_stream_pair()
        connection = MuxedConnection(Pipe(left, False), PEER, settings or default_settings())  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.start)
            await connection.event_started.wait()
            yield connection, right
            nursery.cancel_scope.cancel()

    return one


async def pair_of_streams(client: MuxedConnection, server: MuxedConnection) -> tuple[MuxedStream, MuxedStream]:
    out = await client.open_stream()
    into = await server.accept_stream()
    assert isinstance(out, MuxedStream)
    assert isinstance(into, MuxedStream)
    return out, into


async def read_all(stream: MuxedStream) -> tuple[bytes, type[Exception]]:
    received = b""
    try:
        while True:
            received += await stream.read()
    except MuxedStreamError as error:
        return received, type(error)


async def test_bytes_half_close_and_end(linked: Connect, autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (client, server):
        out, into = await pair_of_streams(client, server)
        await out.write(b"question")
        await out.close()
        assert await into.read() == b"question"
        with pytest.raises(MuxedStreamEOF):
            await into.read()
        await into.write(b"answer")
        await into.close()
        assert await out.read(3) == b"ans"
        assert await out.read() == b"wer"
        with pytest.raises(MuxedStreamEOF):
            await out.read()
        with pytest.raises(MuxedStreamClosed):
            await out.write(b"more")


async def test_a_cancelled_write_is_all_or_nothing_and_harms_nobody(linked: Connect, autojump_clock: Any) -> None:
    async with linked(replace(default_settings(), send_queue=1000)) as (client, server):
        out, into = await pair_of_streams(client, server)
        await out.write(b"a" * 600_000)
        survived = 0
        for _ in range(30):
            with trio.move_on_after(0.01) as scope:
                await out.write(b"never")
            survived += scope.cancelled_caught
        assert survived == 30
        await out.close()
        assert await read_all(into) == (b"a" * 600_000, MuxedStreamEOF)


async def test_a_writer_waits_for_a_slow_reader_however_long_it_pauses(linked: Connect, autojump_clock: Any) -> None:
    async with linked(replace(default_settings(), send_queue=100_000)) as (client, server):
        out, into = await pair_of_streams(client, server)
        written = 0

        async def write() -> None:
            nonlocal written
            for _ in range(20):
                await out.write(b"x" * 100_000)
                written += 100_000
            await out.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await trio.sleep(60)
            assert written < 600_000
            assert await read_all(into) == (b"x" * 2_000_000, MuxedStreamEOF)


async def test_a_plugged_stream_moves_its_bytes_by_itself(linked: Connect, autojump_clock: Any) -> None:
    async with linked() as (client, server):
        here, there = await pair_of_streams(client, server)
        await there.write(b"early, ")
        await trio.testing.wait_all_tasks_blocked()
        to_send, arrived = [b"one", b"two", b"three"], bytearray()
        here.plug(lambda: to_send.pop(0) if to_send else b"", arrived.extend)
        here.wants_to_send()
        await there.write(b"late")
        await trio.testing.wait_all_tasks_blocked()
        assert (bytes(arrived), await there.read()) == (b"early, late", b"onetwothree")
        to_send.append(b"more")
        here.wants_to_send()
        assert await there.read() == b"more"
        await there.close()
        with pytest.raises(MuxedStreamEOF):
            await here.read()


async def test_a_sink_that_is_not_done_lets_others_have_their_turn_and_gets_no_more(linked: Connect, autojump_clock: Any) -> None:
    async with linked() as (client, server):
        here, there = await pair_of_streams(client, server)
        turns, told = 0, list[tuple[bytes, int]]()
        left = 5

        async def others() -> None:
            nonlocal turns
            while left:
                turns += 1
                await trio.lowlevel.checkpoint()

        def sink(chunk: bytes | memoryview) -> bool:
            nonlocal left
            told.append((bytes(chunk), turns))
            left -= not told[-1][0] or len(told) == 1
            return left > 0

        here.plug(lambda: b"", sink)
        async with trio.open_nursery() as nursery:
            await there.write(b"much")
            nursery.start_soon(others)
        await there.write(b"more")
        await trio.testing.wait_all_tasks_blocked()
        assert [chunk for chunk, _ in told] == [b"much", b"", b"", b"", b"", b"more"]
        assert len({turn for _, turn in told}) >= 2


async def test_single_bytes_in_messages_of_their_own_leave_others_their_turn(linked: Connect, autojump_clock: Any) -> None:
    class Hoard(Pipe):
        """As a session that has opened a thousand messages of one receive: reading them waits for nothing."""

        has_more = True

        def __init__(self, stream: trio.StapledStream, is_initiator: bool) -> None:
            super().__init__(stream, is_initiator)
            self.messages = [HEADER.pack(0, PING, ACK, 0, 1)] * (4 * EFFECTS_AT_ONCE)

        async def read(self, n: int | None = None) -> bytes:
            return self.messages.pop(0) if self.messages else await super().read(n)

    async with linked() as (client, server):
        turns_at: list[int] = []
        turns = 0
        hoard = Hoard(server.secured_conn.stream, False)  # type: ignore[attr-defined]
        apply = server._apply

        def applied(effect: Any) -> None:
            turns_at.append(turns)
            apply(effect)

        server._apply = applied  # type: ignore[method-assign]
        server.secured_conn = hoard  # type: ignore[assignment]

        async def others() -> None:
            nonlocal turns
            while hoard.messages:
                turns += 1
                await trio.lowlevel.checkpoint()

        await (await client.open_stream()).write(b"wake up")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
        assert len(set(turns_at)) >= 3


async def test_a_plugged_source_is_asked_for_one_batch_while_nobody_reads(linked: Connect, autojump_clock: Any) -> None:
    async with linked() as (client, server):
        here, there = await pair_of_streams(client, server)
        asked = 0

        def take() -> bytes:
            nonlocal asked
            asked += 1
            return bytes(64 << 10)

        here.plug(take, lambda chunk: None)
        here.wants_to_send()
        await trio.testing.wait_all_tasks_blocked()
        assert asked * (64 << 10) <= client.settings.yamux.max_window + BATCH_BYTES + (64 << 10)
        before, read = asked, 0
        while read < 1 << 20:
            read += len(await there.read())
        assert asked > before
        await there.reset()
        await trio.testing.wait_all_tasks_blocked()
        stopped = asked
        here.wants_to_send()
        await trio.testing.wait_all_tasks_blocked()
        assert asked == stopped
        with pytest.raises(MuxedStreamReset):
            await here.read()


async def test_a_silent_peer_is_dropped_and_a_quiet_one_is_not(raw: Connect, linked: Connect, autojump_clock: Any) -> None:
    settings = replace(default_settings(), keepalive_interval=3.0, keepalive_timeout=5.0)
    async with linked(settings, settings) as (client, _):
        await trio.sleep(600)
        assert not client.is_closed
        assert client.rtt is not None
    async with raw(settings) as (connection, _):
        began = trio.current_time()
        await connection.event_closed.wait()
        assert trio.current_time() - began < 9
        assert connection.cause == "silent"


async def test_a_connection_is_suspect_before_it_is_dropped(raw: Connect, autojump_clock: Any) -> None:
    async with raw() as (connection, _):
        assert not connection.is_suspect
        await trio.sleep(1.5)
        assert connection.is_suspect


async def test_a_peer_that_overruns_its_window_loses_its_connection(raw: Connect, autojump_clock: Any) -> None:
    async with raw() as (connection, wire):
        await wire.send_all(HEADER.pack(0, WINDOW_UPDATE, SYN, 1, 0) + HEADER.pack(0, DATA, 0, 1, 1 << 20))
        await connection.event_closed.wait()
        assert connection.cause == "protocol"
        assert "window" in connection.detail


async def test_unread_bytes_are_bounded_over_all_connections(raw: Connect, autojump_clock: Any) -> None:
    memory = ReceiveMemory(limit=300_000, share=100_000)
    settings = replace(default_settings(), memory=memory)
    async with raw(settings) as (greedy, wire), raw(settings) as (modest, other):
        await other.send_all(HEADER.pack(0, WINDOW_UPDATE, SYN, 1, 0) + HEADER.pack(0, DATA, 0, 1, 90_000) + b"m" * 90_000)
        for stream in (1, 3):
            await wire.send_all(HEADER.pack(0, WINDOW_UPDATE, SYN, stream, 0))
            await wire.send_all(HEADER.pack(0, DATA, 0, stream, 150_000) + b"g" * 150_000)
        await greedy.event_closed.wait()
        assert greedy.cause == "memory"
        assert not modest.is_closed
        assert memory.held == 90_000


async def test_memory_is_given_back_by_reading_resetting_and_releasing(linked: Connect, autojump_clock: Any) -> None:
    settings = default_settings()
    async with linked(None, settings) as (client, server):
        streams = [await pair_of_streams(client, server) for _ in range(3)]
        for out, _ in streams:
            await out.write(b"x" * 1000)
        await trio.testing.wait_all_tasks_blocked()
        assert settings.memory.held == 3000
        await streams[0][1].read()
        await streams[1][1].reset()
        streams[2][1].release()
        assert settings.memory.held == 0


async def test_a_slot_is_freed_when_stream_and_handler_are_both_over(raw: Connect, autojump_clock: Any) -> None:
    slots = InboundSlots(4)
    settings = replace(default_settings(), slots=slots)
    async with raw(settings) as (connection, wire):
        await wire.send_all(HEADER.pack(0, WINDOW_UPDATE, SYN, 1, 0))
        stream = await connection.accept_stream()
        await wire.send_all(HEADER.pack(0, WINDOW_UPDATE, FIN, 1, 0))
        with pytest.raises(MuxedStreamEOF):
            await stream.read()
        await stream.write(b"answer")
        stream.handled()
        assert slots.held == {PEER: 1}
        await stream.close()
        await trio.testing.wait_all_tasks_blocked()
        assert not slots.held


async def test_closing_flushes_what_was_queued_and_says_goodbye(linked: Connect, autojump_clock: Any) -> None:
    async with linked() as (client, server):
        out, into = await pair_of_streams(client, server)
        await out.write(b"z" * 200_000)
        await client.close()
        await server.event_closed.wait()
        assert (client.cause, server.cause) == ("local", "peer")
        assert "goodbye" in server.detail
        assert await read_all(into) == (b"z" * 200_000, MuxedStreamReset)


async def test_a_closed_connection_refuses_politely(linked: Connect, autojump_clock: Any) -> None:
    async with linked() as (client, server):
        await client.close()
        with pytest.raises(MuxedConnUnavailable):
            await client.open_stream()
        with pytest.raises(MuxedConnUnavailable):
            await client.accept_stream()
        await server.event_closed.wait()


async def test_cutting_the_wire_resets_every_stream(raw: Connect, autojump_clock: Any) -> None:
    async with raw() as (connection, wire):
        await wire.send_all(HEADER.pack(0, WINDOW_UPDATE, SYN, 1, 0))
        stream = await connection.accept_stream()
        await wire.aclose()
        with pytest.raises(MuxedStreamReset):
            await stream.read()
        assert connection.is_closed


async def test_pings_are_answered(raw: Connect, autojump_clock: Any) -> None:
    async with raw() as (_, wire):
        await wire.send_all(HEADER.pack(0, PING, SYN, 0, 4711))
        received = b""
        while HEADER.pack(0, PING, 2, 0, 4711) not in received:
            received += await wire.receive_some()
