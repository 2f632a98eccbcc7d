"""A private mesh at the handshake: members meet on every kind of path, strangers fail before they learn who is there."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from daemon.transport.host import Libp2pTransport
from daemon.transport.interface import MeshGate, PathKind, Stream, TransportError
from daemon.transport.options import TransportOptions
from protocol.wire.ids import PeerId

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
KEY, OTHER_KEY = bytes(range(32)), bytes(32)


def gate(key: bytes = KEY, refused: "set[PeerId] | None" = None, shown: bytes = b"member") -> MeshGate:
    """A gate whose proof is a word; `refused` may be filled later."""

    def judge(peer: PeerId, proof: bytes) -> str | None:
        if refused and peer in refused:
            return "it was revoked"
        return None if proof == b"member" else "it shows no grant"

    return MeshGate(key, lambda: shown, judge, "/test")


def transport(seed: int, mesh: MeshGate | None, **options: Any) -> Libp2pTransport:
    key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    made = Libp2pTransport(key, TransportOptions(**{"listen": LOOPBACK, **options}), gate=mesh)

    async def echo(stream: Stream) -> None:
        while received := await stream.receive_some():
            await stream.send_all(received)

    made.handle("/echo", echo)
    return made


async def test_members_speak_and_the_bytes_arrive(echoes: Callable[..., Any]) -> None:
    one, two = transport(1, gate()), transport(2, gate())
    async with one.running(), two.running():
        await one.connect(two.peer_id, two.addresses())
        assert await echoes(one, two.peer_id, bytes(200_000))
        assert await echoes(two, one.peer_id)


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        (None, "speaks no Noise"),
        (gate(OTHER_KEY), "mesh key"),
        (gate(shown=b"forged"), "it shows no grant"),
    ],
    ids=["public", "another key", "no grant"],
)
async def test_a_stranger_is_told_why_and_gets_nothing(theirs: MeshGate | None, says: str) -> None:
    member, stranger = transport(1, gate()), transport(2, theirs)
    async with member.running(), stranger.running():
        with pytest.raises(TransportError, match=says):
            await stranger.connect(member.peer_id, member.addresses())
        with pytest.raises(TransportError):
            await member.connect(stranger.peer_id, stranger.addresses())
        assert not member.paths()
        assert not stranger.paths()
        assert not member.counters.accepted


async def test_a_revoked_member_is_refused_from_both_sides() -> None:
    refused: set[PeerId] = set()
    one, two = transport(1, gate(refused=refused)), transport(2, gate())
    refused.add(two.peer_id)
    async with one.running(), two.running():
        with pytest.raises(TransportError, match="it refuses us: it was revoked"):
            await two.connect(one.peer_id, one.addresses())
        with pytest.raises(TransportError, match="we refuse it: it was revoked"):
            await one.connect(two.peer_id, two.addresses())


async def test_the_gate_holds_inside_a_relayed_connection(until: Callable[..., Any], echoes: Callable[..., Any]) -> None:
    refused: set[PeerId] = set()
    relay = transport(1, gate(), serve_relay=True)
    async with relay.running():
        hidden = transport(2, gate(refused=refused), listen=(), relays=relay.addresses(), punch=False)
        guest, fallen = transport(3, gate(), punch=False), transport(4, gate(), punch=False)
        async with hidden.running(), guest.running(), fallen.running():
            await until(lambda: bool(hidden.addresses()))
            refused.add(fallen.peer_id)
            await guest.connect(hidden.peer_id, hidden.addresses())
            assert guest.paths()[hidden.peer_id].kind is PathKind.RELAYED
            assert await echoes(guest, hidden.peer_id)
            with pytest.raises(TransportError, match="it was revoked"):
                await fallen.connect(hidden.peer_id, hidden.addresses())
            assert fallen.peer_id not in hidden.paths()


async def test_a_relay_outside_the_mesh_is_refused() -> None:
    relay = transport(1, None, serve_relay=True)
    async with relay.running():
        member = transport(2, gate(), listen=(), relays=relay.addresses())
        async with member.running():
            with pytest.raises(TransportError, match="not in our private mesh"):
                await member.connect(relay.peer_id, relay.addresses())
            assert not member.addresses()


async def test_garbage_at_the_door_of_a_private_mesh_ends_that_connection_alone(until: Callable[..., Any]) -> None:
    one, two = transport(1, gate()), transport(2, gate())
    async with one.running(), two.running():
        port = int(one.addresses()[0].split("/")[4])
        for garbage in (b"\x13/multistream/1.0.0\n\x16/swarmd/mesh-noise/1\n\x00\x30" + bytes(48), b"\xff" * 400):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(garbage)
            await stream.aclose()
        await two.connect(one.peer_id, one.addresses())
        await until(lambda: two.peer_id in one.paths())
