"""What becomes of reservations when relays die, with real hosts on loopback; the relay's fairness, under a virtual clock."""

import contextlib

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb

from daemon.transport.host import Libp2pTransport
from daemon.transport.options import TransportOptions
from daemon.transport.relay_hop import Hop, RelayOptions, _load_field, load_of

LISTEN = ("/ip4/127.0.0.1/tcp/0",)
REPLACED_SECONDS = 5.0


class Wire:
    """Forwards one port to another until it is cut: then nothing comes through, and nobody is told."""

    def __init__(self, target):
        self.target = target
        self.cut = False
        self.closed = trio.CancelScope()

    async def run(self, task_status=trio.TASK_STATUS_IGNORED):
        with self.closed:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            task_status.started(listeners[0].socket.getsockname()[1])
            await trio.serve_listeners(self._carry, listeners)

    async def _carry(self, near):
        with contextlib.suppress(OSError, trio.BrokenResourceError):
            async with near, await trio.open_tcp_stream("127.0.0.1", self.target) as far, trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, near, far, nursery)
                nursery.start_soon(self._copy, far, near, nursery)

    async def _copy(self, source, sink, nursery):
        async for chunk in source:
            while self.cut:
                await trio.sleep(0.05)
            await sink.send_all(chunk)
        nursery.cancel_scope.cancel()


def transport(**options):
    return Libp2pTransport(Ed25519PrivateKey.generate(), TransportOptions(listen=LISTEN, punch=False, udp=False, **options))


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.parametrize("death", ["killed", "silent"])
async def test_a_dead_relay_is_replaced_within_five_seconds(death, until):
    async with trio.open_nursery() as nursery, contextlib.AsyncExitStack() as stack:
        wires, addresses = {}, []
        for _ in range(3):
            relay = await stack.enter_async_context(transport(serve_relay=True).running())
            (port,) = relay.relay.observations.listening_ports()
            wire = Wire(port)
            through = await nursery.start(wire.run)
            wires[relay.peer_id] = wire
            addresses.append(f"/ip4/127.0.0.1/tcp/{through}/p2p/{relay.peer_id}")
        one = await stack.enter_async_context(transport(relays=tuple(addresses)).running())
        await until(lambda: len(one.relay.reservations) == 2)
        held = set(one.relay.reservations)
        (spare,) = set(wires) - held
        dead = min(held)
        began = trio.current_time()
        if death == "killed":
            wires[dead].closed.cancel()
        else:
            wires[dead].cut = True
        await until(lambda: spare in one.relay.reservations, 15)
        took = trio.current_time() - began
        print(f"a relay that was {death} is replaced after {took:.2f} s")
        assert took < REPLACED_SECONDS
        assert any(spare in address for address in one.addresses())
        if death == "silent":
            wires[dead].cut = False
            await until(lambda: len(one.relay.reservations) == 2)
        for wire in wires.values():
            wire.cut = False
        nursery.cancel_scope.cancel()


@pytest.mark.live
@pytest.mark.slow
async def test_a_relay_says_how_full_it_is(until):
    async with (
        transport(serve_relay=True, relay_reservations=4).running() as relay,
        transport(relays=relay.addresses()).running() as one,
    ):
        await until(lambda: one.relay.reservations)
        (row,) = one.relay.keeping.view()
        assert (row["load"], row["circuits"]) == (0.25, 0)
        (candidate,) = one.relay.keeping._candidates()
        assert candidate.load == 0.25


def test_the_load_is_a_field_that_others_pass_over():
    told = pb.HopMessage(type=pb.HopMessage.STATUS, status=pb.OK).SerializeToString()
    assert _load_field(0.25).hex() == "b8a602fa01"
    for load in (0.0, 0.333, 1.0, 7.0):
        message = pb.HopMessage()
        message.ParseFromString(told + _load_field(load))
        assert message.status == pb.OK
        assert load_of(message) == min(load, 1.0)
    plain = pb.HopMessage()
    plain.ParseFromString(told)
    assert load_of(plain) == 0.0
    boast = pb.HopMessage()
    boast.ParseFromString(told + bytes.fromhex("b8a602" + "ff" * 8 + "7f"))
    assert load_of(boast) == 1.0


class Endless:
    """A stream with always more to send, that counts what is written to it."""

    def __init__(self):
        self.taken = 0

    async def read(self, limit):
        await trio.lowlevel.checkpoint()
        return bytes(min(limit, 16384))

    async def write(self, chunk):
        self.taken += len(chunk)
        await trio.lowlevel.checkpoint()

    async def close(self):
        pass


RATE, SECONDS = 1 << 20, 60


async def carried(*circuits_of):
    """Bytes a second that each peer gets, where the first opens so many circuits, the second so many..."""
    hop = Hop(None, RelayOptions(serve=True, rate=RATE, max_circuit_bytes=0))
    ends = [[Endless() for _ in range(2 * count)] for count in circuits_of]
    with trio.move_on_after(SECONDS):
        async with trio.open_nursery() as nursery:
            for number, streams in enumerate(ends):
                for one, other in zip(streams[::2], streams[1::2], strict=True):
                    nursery.start_soon(hop._join, one, other, ID(bytes([number])))
    return [sum(stream.taken for stream in streams) / SECONDS for streams in ends]


@pytest.mark.parametrize("circuits_of", [(1, 1), (8, 1), (16, 4, 1)])
async def test_peers_have_like_shares_however_many_circuits_they_open(circuits_of, autojump_clock: trio.testing.MockClock):
    shares = await carried(*circuits_of)
    print([f"{share / 1024:.0f} KiB/s" for share in shares])
    assert max(shares) <= 1.15 * min(shares)
    assert 0.9 * RATE < sum(shares) < 1.15 * RATE


async def test_one_alone_has_all_of_it(autojump_clock: trio.testing.MockClock):
    (share,) = await carried(1)
    assert 0.95 * RATE < share < 1.05 * RATE
