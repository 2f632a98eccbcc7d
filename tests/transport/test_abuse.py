"""A malicious peer on every protocol: the host lives, others are served over their old connection, and the fault is counted."""

import contextlib
import logging
import os
import socket
import struct
from functools import partial
from typing import Any, cast

import pytest
import trio
import trio.testing
from libp2p.peer.id import ID

from daemon.transport.host import Libp2pTransport
from daemon.transport.interface import Stream, TransportError
from daemon.transport.muxer import MuxedConnection
from daemon.transport.noise_session import NoiseSession
from daemon.transport.yamux_frames import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, WINDOW_UPDATE
from protocol.wire.codec import FrameReader
from protocol.wire.ids import PeerId

pytestmark = pytest.mark.live

RPC = "/swarmd/rpc/1"

GARBAGE = [
    b"",
    b"\x00",
    os.urandom(64),
    b"\xff" * 32,
    b"\xff\xff\xff\xff\x7f" + b"A" * 100,
    b"\x05hello",
    b"\x02\x08\x01",
    b"\x80\x80\x80\x01" + b"B" * 5000,
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x04" + b"\x0a\xff\xff\xff",
]

PROTOCOLS = [
    "/ipfs/ping/1.0.0",
    "/ipfs/id/1.0.0",
    "/ipfs/id/push/1.0.0",
    "/ipfs/kad/1.0.0",
    "/meshsub/1.1.0",
    "/libp2p/circuit/relay/0.2.0/hop",
    "/libp2p/circuit/relay/0.2.0/stop",
    "/libp2p/dcutr",
    RPC,
]

# Their handlers in the library, and our DHT's, end such a stream themselves and raise nothing.
QUIET = ("/ipfs/ping/1.0.0", "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/kad/1.0.0")


async def serve_rpc(stream: Stream) -> None:
    """Frames as the daemon cuts them: a length over the limit ends the stream by an exception."""
    frames = FrameReader()
    while received := await stream.receive_some():
        frames.feed(received)
    if frames.pending:
        raise TransportError("half a frame")


def connection_to(transport: Libp2pTransport, peer: PeerId) -> MuxedConnection:
    return cast("MuxedConnection", transport._swarm.connections[ID.from_base58(peer)][0].muxed_conn)


class Scene:
    """A host with every service on, an honest neighbour connected to it, and an attacker."""

    def __init__(self, transports: list[Libp2pTransport], echoes: Any) -> None:
        self.host, self.neighbour, self.attacker = transports
        self.echoes = echoes

    async def set(self) -> None:
        self.host.handle(RPC, serve_rpc)
        await self.neighbour.connect(self.host.peer_id, self.host.addresses())
        await self.attacker.connect(self.host.peer_id, self.host.addresses())

    async def all_is_well(self) -> None:
        """The neighbour is served, over a connection it never lost, and a newcomer's negotiation is answered."""
        assert await self.echoes(self.neighbour, self.host.peer_id)
        assert connection_to(self.neighbour, self.host.peer_id) is self.before
        with pytest.raises(TransportError, match="does not serve"):
            await self.neighbour.open_stream(self.host.peer_id, "/nothing")

    async def __aenter__(self) -> "Scene":
        await self.set()
        self.before = connection_to(self.neighbour, self.host.peer_id)
        return self

    async def __aexit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            await self.all_is_well()

    async def garbage_on(self, protocol: str, payload: bytes, ending: str) -> None:
        """One stream of garbage; the host may end it in any way it likes."""
        peer = self.host.peer_id
        try:
            with trio.move_on_after(2):
                stream = await self.attacker.open_stream(peer, protocol)
                await stream.send_all(payload)
                if ending == "reset":
                    await stream.reset()
                elif ending == "half-close":
                    await stream.aclose()
        except TransportError:
            await self.attacker.connect(peer)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_garbage_on_every_protocol(running: Any, echoes: Any, protocol: str) -> None:
    async with running(3, serve_relay=True) as transports, Scene(transports, echoes) as scene:
        for payload in GARBAGE:
            for ending in ("reset", "half-close"):
                await scene.garbage_on(protocol, payload, ending)
        await scene.garbage_on(protocol, os.urandom(300_000), "reset")
        await trio.testing.wait_all_tasks_blocked(0.01)
        # One end of the wire that simply vanishes, with a stream half sent.
        await scene.garbage_on(protocol, b"\x05hel", "stay")
        await connection_to(scene.attacker, scene.host.peer_id).secured_conn.close()
        assert protocol in QUIET or scene.host.counters.handler_faults[protocol] or scene.host._gossip.counters["malformed"]


@pytest.mark.parametrize("protocol", ["/libp2p/circuit/relay/0.2.0/hop", "/libp2p/circuit/relay/0.2.0/stop"])
async def test_what_is_no_message_is_a_peers_fault_and_worth_no_line(
    running: Any, echoes: Any, until: Any, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    async with running(3, serve_relay=True) as transports, Scene(transports, echoes) as scene:
        for number in range(3):
            await scene.garbage_on(protocol, b"\x04\x0a\xff\xff\xff", "stay")
            await until(lambda n=number: scene.host.counters.handler_faults[protocol] == n + 1)
    assert not [record for record in caplog.records if record.levelno > logging.INFO and record.name.startswith("daemon")]


NEGOTIATIONS = [
    b"",
    b"\x00",
    b"\xff" * 20,
    b"\x13/multistream/1.0.0\n\x03\xff\xfe\n",
    b"\x13/multistream/1.0.0\n\x03ls\n" * 200,
    b"\x13/multistream/9.9.9\n",
    b"\x13/multistream/1.0.0\n\x01\n",
    b"\x13/multistream/1.0.0\n" + b"\x05/none\n" * 300,
    b"\xff\xff\xff\xff\x0f" + b"x" * 200,
    b"GET / HTTP/1.1\r\n\r\n",
]


async def test_garbage_instead_of_a_protocol(running: Any, echoes: Any, until: Any) -> None:
    async with running(3) as transports, Scene(transports, echoes) as scene:
        for raw in NEGOTIATIONS:
            muxed = await connection_to(scene.attacker, scene.host.peer_id).open_stream()
            await muxed.write(raw)
            await muxed.close()
        await until(lambda: scene.host.counters.handler_faults["negotiation"] >= 1)


RAW = [
    b"",
    os.urandom(100),
    b"\x13/multistream/1.0.0\n",
    b"\x13/multistream/1.0.0\n\x07/noise\n",
    b"\x13/multistream/1.0.0\n\x07/noise\n\xff\xff" + b"z" * 300,
    b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20" + b"q" * 32,
    b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x00",
    b"\x13/multistream/1.0.0\n\x04\xff\xfe\xfd\n",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(100),
]


async def test_garbage_on_the_bare_socket(running: Any, echoes: Any, until: Any) -> None:
    async with running(3, upgrade_timeout=0.3) as transports, Scene(transports, echoes) as scene:
        port = int(scene.host.addresses()[0].split("/")[4])
        for raw in RAW:
            for abrupt in (True, False):
                with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                    sock.sendall(raw)
                    if abrupt:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await until(lambda: sum(scene.host.counters.handshakes_failed.values()) == 2 * len(RAW))


async def test_silent_sockets_hold_up_a_newcomer_only_until_they_time_out(running: Any, echoes: Any, make_transport: Any) -> None:
    async with running(3, upgrade_timeout=0.3, max_pending_handshakes=4) as transports, Scene(transports, echoes) as scene:
        port = int(scene.host.addresses()[0].split("/")[4])
        silent = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(12)]
        newcomer = make_transport(connect_timeout=5.0)
        async with newcomer.running():
            with trio.fail_after(5):
                while not newcomer.paths():
                    try:
                        await newcomer.connect(scene.host.peer_id, scene.host.addresses())
                    except TransportError:
                        continue
        for sock in silent:
            sock.close()


NO_PEERS = [b"", b"\xff" * 20, b"\x04\xff\xfe\xfd\n", b"\x13/multistream/1.0.0\n\x04\xff\xfe\xfd\n", b"HTTP/1.1 400\r\n\r\n"]


@pytest.mark.parametrize("said", NO_PEERS)
async def test_whatever_answers_in_a_relays_or_bootstraps_place_ends_a_dial_and_no_more(running: Any, said: bytes) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(said)
            await stream.receive_some()
        await stream.aclose()

    async with running(1) as (host,), trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        peer = "12D3KooWBCLZNDXMrP581VcmTCbSBMaJXzEc9u9U5yyDA8eZkwTy"
        address = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}/p2p/{peer}"
        with pytest.raises(TransportError, match="could not be reached"):
            await host.relay.reach(address)
        host.relay.use(address)
        with trio.fail_after(5):
            while not host.relay.keeping._known[ID.from_base58(peer)].failures:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_one_address_that_comes_and_goes_is_let_in_now_and_then(
    running: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.transport.swarm.ARRIVALS_RATE", 0.001)
    monkeypatch.setattr("daemon.transport.swarm.ARRIVALS_BURST", 3.0)
    async with running(1, loopback_exempt=False) as (host,):
        port = int(host.addresses()[0].split("/")[4])
        for number in range(1, 7):
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                pass
            await until(lambda n=number: host.counters.handshakes_failed.total() + host.counters.refused["rate"] == n)
        assert (host.counters.handshakes_failed.total(), host.counters.refused["rate"]) == (3, 3)


async def test_sockets_that_come_while_a_dial_back_is_awaited_are_counted_too(running: Any, until: Any) -> None:
    async with running(1, loopback_exempt=False, max_connections_per_ip=2) as (host,):
        host.relay.reachability._expected[bytes(16)] = ID.from_base58(host.peer_id)
        port = int(host.addresses()[0].split("/")[4])
        silent = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(6)]
        await until(lambda: host.counters.refused["ip"] == 4, 0.9)  # each is waited for a second
        for sock in silent:
            sock.close()
        await until(lambda: host._swarm._inbound == 0)
        del host.relay.reachability._expected[bytes(16)]


def frame(kind: int, flags: int, stream: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack("!BBHII", 0, kind, flags, stream, length) + body


ODD = 0x7001
BROKEN_FRAMES = {
    "version": struct.pack("!BBHII", 3, 0, 0, 0, 0),
    "type": frame(9, 0, 0, 0),
    "stream-zero": frame(DATA, 0, 0, 4, b"abcd"),
    "not-its-id": frame(WINDOW_UPDATE, SYN, ODD + 1, 0),
    "twice-opened": frame(WINDOW_UPDATE, SYN, ODD, 0) * 2,
    "huge-length": frame(DATA, 0, ODD, 0xFFFFFFFF),
    "window-overrun": frame(WINDOW_UPDATE, SYN, ODD, 0) + frame(DATA, 0, ODD, 300_000),
    "window-overflow": frame(WINDOW_UPDATE, SYN, ODD, 0) + frame(WINDOW_UPDATE, 0, ODD, 0xFFFFFFFF),
    "ping-flood": frame(PING, SYN, 0, 1) * 20_000,
    "refused-flood": b"".join(frame(WINDOW_UPDATE, SYN, ODD + 2 * n, 0) for n in range(20_000)),
}


@pytest.mark.parametrize("case", BROKEN_FRAMES)
async def test_broken_yamux_costs_the_attacker_its_connection(running: Any, echoes: Any, until: Any, case: str) -> None:
    async with running(3) as transports, Scene(transports, echoes) as scene:
        connection = connection_to(scene.attacker, scene.host.peer_id)
        connection._machine._control.append(BROKEN_FRAMES[case])
        connection._flush()
        await until(lambda: scene.host.counters.connections_closed["protocol"] == 1)
        assert scene.attacker.peer_id not in scene.host.paths()


HARMLESS_FRAMES = {
    "unknown-streams": frame(DATA, 0, 0x4001, 5, b"hello") + frame(WINDOW_UPDATE, RST, 0x4003, 0) + frame(DATA, FIN, 0x4005, 0),
    "unasked-pong": frame(PING, ACK, 0, 12345),
    "rapid-reset": b"".join(
        frame(WINDOW_UPDATE, SYN, ODD + 2 * n, 0) + frame(WINDOW_UPDATE, RST, ODD + 2 * n, 0) for n in range(500)
    ),
    "finished-at-once": b"".join(frame(WINDOW_UPDATE, SYN | FIN, ODD + 2 * n, 0) for n in range(20)),
}


@pytest.mark.parametrize("case", HARMLESS_FRAMES)
async def test_odd_yamux_is_borne(running: Any, echoes: Any, case: str) -> None:
    async with running(3) as transports, Scene(transports, echoes) as scene:
        connection = connection_to(scene.attacker, scene.host.peer_id)
        connection._machine._control.append(HARMLESS_FRAMES[case])
        connection._flush()
        # The slots come back once the handlers of those streams have ended.
        with trio.fail_after(5):
            while not await echoes(scene.attacker, scene.host.peer_id):
                await trio.sleep(0.02)


async def test_leaving_with_an_error_code_is_leaving(running: Any, echoes: Any, until: Any) -> None:
    async with running(3) as transports, Scene(transports, echoes) as scene:
        connection = connection_to(scene.attacker, scene.host.peer_id)
        connection._machine._control.append(frame(GO_AWAY, 0, 0, 77))
        connection._flush()
        await until(lambda: scene.host.counters.connections_closed["peer"] == 1)


async def test_corrupt_ciphertext_costs_the_attacker_its_connection(running: Any, echoes: Any, until: Any) -> None:
    async with running(3) as transports, Scene(transports, echoes) as scene:
        session = cast("NoiseSession", connection_to(scene.attacker, scene.host.peer_id).secured_conn)
        await session.raw.write(b"\x00\x40" + os.urandom(64))
        await until(lambda: scene.host.counters.connections_closed["cipher"] == 1)


async def test_a_peer_that_never_reads_holds_back_its_own_streams_alone(running: Any, echoes: Any) -> None:
    async def talk(stream: Stream) -> None:
        while True:
            await stream.send_all(b"x" * 65536)

    async with running(3, send_queue=100_000) as transports, Scene(transports, echoes) as scene:
        scene.host.handle("/talk", talk)
        for _ in range(8):
            await scene.attacker.open_stream(scene.host.peer_id, "/talk")
        await trio.sleep(0.1)
        queued = sum(len(s.pending) for s in connection_to(scene.host, scene.attacker.peer_id)._machine._streams.values())
        assert queued <= 8 * 2 * 100_000
        assert await echoes(scene.attacker, scene.host.peer_id)
