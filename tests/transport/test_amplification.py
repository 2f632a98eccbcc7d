"""What a stranger draws from us per byte that it sends, counted on real sockets: before its address is proved, less than one.

Over UDP a source address can be forged, so nothing is proved by a datagram. Over TCP the handshake proves the address.
"""

import os
import socket
from typing import Any

import pytest
import trio
import trio.testing
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from libp2p.peer.id import ID

from daemon.transport.quic_pipe import ALPN
from nat.datagrams import Ack, Ask, Knock, Probe, Tell, decode, encode
from nat.punch_messages import Endpoint, Hello, joint_token

pytestmark = pytest.mark.live

HEADERS = 28
"""IPv4 and UDP (RFC 791, RFC 768)."""

QUIET_SECONDS = 0.15
INITIAL = b"\xc3\x00\x00\x00\x01\x08" + bytes(range(8)) + b"\x00\x00\x44\xd0" + bytes(1182)
"""Looks like the Initial packet of a QUIC client (RFC 9000): long header, version 1, 1,200 bytes."""

DATAGRAMS = {
    "ask": encode(Ask(bytes(16))), "tell": encode(Tell(bytes(16), "203.0.113.9", 4001)),
    "probe": encode(Probe(bytes(16), True, bytes(8))),
    "ack": encode(Ack(bytes(16), False, bytes(8), bytes(8))),
    "knock": encode(Knock(bytes(16))), "QUIC Initial": INITIAL, "empty": b"",
    "STUN binding": bytes.fromhex("000100002112a442") + bytes(12), "a short ask": encode(Ask(bytes(16)))[:39],
    "mDNS query": bytes.fromhex("000000000001000000000000045f703270045f756470056c6f63616c00000c0001"), "noise": os.urandom(1400),
}  # fmt: skip


async def drawn(port: int, payload: bytes, count: int) -> tuple[int, int]:
    """Bytes sent and received with headers, for `count` datagrams from one address."""
    received = 0
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        await stranger.bind(("127.0.0.1", 0))
        for _ in range(count):
            await stranger.sendto(payload, ("127.0.0.1", port))
        with trio.move_on_after(QUIET_SECONDS):
            while True:
                received += HEADERS + len(await stranger.recv(65536))
    return count * (HEADERS + len(payload)), received


@pytest.mark.parametrize("name", DATAGRAMS)
async def test_a_datagram_of_a_stranger_draws_less_than_it_costs(running: Any, name: str) -> None:
    async with running(1) as (ours,):
        port = int(ours.addresses()[0].split("/")[4])
        assert [opened.port for opened in ours.relay.udp.ports] == [port]
        sent, received = await drawn(port, DATAGRAMS[name], 1)
        print(f"{name}: {sent} bytes draw {received}, factor {received / sent:.2f}")
        assert received == (HEADERS + 39 if name == "ask" else 0)
        assert received < sent


async def test_many_questions_draw_few_answers(running: Any) -> None:
    async with running(1) as (ours,):
        port = int(ours.addresses()[0].split("/")[4])
        sent, received = await drawn(port, DATAGRAMS["ask"], 200)
        assert 0 < received <= 25 * (HEADERS + 39), "twenty at once, then five a second"
        assert received < sent / 4


def initial(ticket: bytes) -> bytes:
    """A real client's first packet."""
    client = QuicConnection(configuration=QuicConfiguration(alpn_protocols=[ALPN], token=ticket))
    client.connect(("127.0.0.1", 1), 0.0)
    return bytes(client.datagrams_to_send(0.0)[0][0])


async def test_quic_begins_for_none_but_who_receives_at_its_address(running: Any) -> None:
    """In a session whose peer may forge sources: what it sends from an address draws less, until it says what came there."""
    async with running(1) as (ours,), trio.open_nursery() as nursery:
        udp, there = ours.relay.udp, (Endpoint("203.0.113.9", 4001),)
        hello, theirs = Hello(os.urandom(16), udp=there), Hello(os.urandom(16), udp=there)
        nobody = ID.from_base58("12D3KooWRpRMTtJfBF5tJFtLWhaB8XHSurC2eFeDhudVYzMT6DS3")

        async def no_witness(_host: str) -> bool:
            return False

        nursery.start_soon(udp.punch, nobody, True, (hello, theirs), no_witness, 0)
        probe = encode(Probe(joint_token(hello.token, theirs.token), False, bytes(8)))
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            await stranger.bind(("127.0.0.1", 0))

            async def answers(payload: bytes) -> list[bytes]:
                found: list[bytes] = []
                await stranger.sendto(payload, ("127.0.0.1", udp.ports[0].port))
                with trio.move_on_after(QUIET_SECONDS):
                    while True:
                        found.append(await stranger.recv(65536))
                return found

            await trio.testing.wait_all_tasks_blocked()
            assert await answers(initial(bytes(8))) == [], "nothing came from there yet"
            (ack,) = await answers(probe)
            print(f"probe: {HEADERS + len(probe)} bytes draw {HEADERS + len(ack)}")
            assert len(ack) < len(probe)
            said = decode(ack)
            assert isinstance(said, Ack)
            for ticket in (b"", bytes(8), said.proof[:-1], said.proof + b"x"):
                assert await answers(initial(ticket)) == []
            begun = await answers(initial(said.proof))
            print(f"QUIC: 1228 bytes draw {sum(HEADERS + len(one) for one in begun)}, once the address is proved")
            assert begun
        nursery.cancel_scope.cancel()


OPENINGS = {
    "nothing": b"", "noise": os.urandom(200), "multistream": b"\x13/multistream/1.0.0\n\x07/noise\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01" + bytes(510),
}  # fmt: skip


@pytest.mark.parametrize("name", OPENINGS)
async def test_a_connection_without_an_identity_draws_little(running: Any, name: str) -> None:
    """TCP has proved the address, so no bound of one is needed: 600 bytes a connection, eight connections an address."""
    async with running(1, upgrade_timeout=0.5) as (ours,):
        port = int(ours.addresses()[0].split("/")[4])
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        received = b""
        async with stream:
            if OPENINGS[name]:
                await stream.send_all(OPENINGS[name])
            with trio.move_on_after(2):
                try:
                    while piece := await stream.receive_some():
                        received += piece
                except trio.BrokenResourceError:
                    pass
        print(f"{name}: {len(OPENINGS[name])} bytes draw {len(received)}")
        assert len(received) <= 600
