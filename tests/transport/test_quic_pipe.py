"""The UDP port and the pipe over it, on loopback sockets: order and volume, what is no QUIC, and answers that gain nothing."""

import os
from contextlib import asynccontextmanager

import pytest
import trio

from daemon.transport.interface import TransportError
from daemon.transport.quic_pipe import QuicPipe, ticket_in
from daemon.transport.udp_port import UdpPort
from nat.datagrams import Ask, encode

pytestmark = [pytest.mark.live, pytest.mark.slow]

HOST = "127.0.0.1"
TICKET = bytes(range(8))


@asynccontextmanager
async def ports():
    one, other = (UdpPort(HOST, 0, os.urandom) for _ in range(2))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        nursery.start_soon(other.run)
        with trio.fail_after(60):
            yield one, other
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def pipes():
    """A client's and a server's end of one pipe, as a punch makes them."""
    async with ports() as (one, other), trio.open_nursery() as nursery:
        made, ready = [], trio.Event()

        def begin(source, payload):
            server = QuicPipe(other.send, source, payload)
            other.pipes[source] = server.arrived
            assert ticket_in(payload) == TICKET
            made.append(server)
            nursery.start_soon(server.serve)
            ready.set()

        other.expected[HOST, one.port] = [begin]
        client = QuicPipe(one.send, (HOST, other.port), ticket=TICKET)
        one.pipes[HOST, other.port] = client.arrived
        nursery.start_soon(client.serve)
        await client.opened.wait()
        await client.write(b"hello")
        await ready.wait()
        await made[0].opened.wait()
        assert await made[0].read() == b"hello"
        yield client, made[0]
        nursery.cancel_scope.cancel()


async def test_bytes_arrive_both_ways_in_order():
    payload = os.urandom(1 << 18)
    async with pipes() as (client, server):
        for sender, receiver in ((client, server), (server, client)):
            received = bytearray()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.write, payload)
                while len(received) < len(payload):
                    received += await receiver.read(10_000)
            assert received == payload


async def test_a_closed_end_is_noticed_and_cannot_be_written_to():
    async with pipes() as (client, server):
        await client.close()
        await server.ended.wait()
        assert await server.read() == b""
        with pytest.raises(TransportError, match="the punched path is gone"):
            await server.write(b"late")


@pytest.mark.parametrize("payload", [b"", b"\x40", b"x" * 1200, b"\xc0" + bytes(1300), os.urandom(1200)])
async def test_what_is_no_quic_makes_no_connection(payload):
    with pytest.raises(TransportError):
        ticket_in(payload)


async def test_a_peer_says_at_which_address_it_sees_us():
    async with ports() as (one, other):
        assert await one.observe((HOST, other.port)) == (HOST, one.port)


async def test_nobody_there_is_no_answer():
    async with ports() as (one, other):
        assert await one.observe((HOST, 9), waits=(0.01, 0.01)) is None
        assert await one.observe((HOST, other.port)) == (HOST, one.port), "the refusal of an earlier datagram ends nothing"


async def test_one_address_gets_few_answers():
    async with ports() as (one, other):
        for number in range(200):
            one.send((HOST, other.port), encode(Ask(number.to_bytes(16, "big"))))
        await one.observe((HOST, other.port), waits=(0.05,))
        assert 0 < other.answered <= 30
