"""Our transport against rust-libp2p, as the lattica wheel ships it: each dials, and 8 MiB cross its Yamux each way.

It leaves every peer whose identify names another protocol version than its own, so ours says the same for these tests.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import libp2p.identity.identify.identify as library
import pytest
import trio

from daemon.transport.interface import Stream

pytestmark = [pytest.mark.interop, pytest.mark.live, pytest.mark.slow]

VERSION = "/ipfs/kad/1.0.0"
CALLS = "/rpc/req-resp/1.0.0"
SIZE = 8 << 20


@pytest.fixture(autouse=True)
def _same_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "PROTOCOL_VERSION", VERSION)


@pytest.fixture(params=["we dial", "it dials"])
def meet(request: pytest.FixtureRequest, ours: Any, lattica: Any, until: Any) -> Any:
    """`async with meet() as (transport, peer)`: one of ours and one of lattica's, which know each other; once each way."""

    @asynccontextmanager
    async def connected() -> AsyncIterator[tuple[Any, Any]]:
        it_dials = request.param == "it dials"
        async with ours() as transport, lattica(*transport.addresses() if it_dials else ()) as peer:
            if not it_dials:
                await transport.connect(peer.peer, [peer.address])
            path = await until(lambda: transport.paths().get(peer.peer))
            assert path.inbound is it_dials
            yield transport, peer

    return connected


def holds(message: bytes, payload: dict[str, str]) -> bool:
    """Whether the payload stands in `message`, after a header whose format is not ours to know."""
    at = message.index(bytes.fromhex(payload["head"]))
    return hashlib.sha256(message[at : at + SIZE]).hexdigest() == payload["sha256"]


async def identified(ours: Any, peer: Any, until: Any) -> Any:
    """What lattica's peer learned of ours from identify."""

    async def told() -> Any:
        found = await peer.ask("identified", peer=ours.peer_id)
        return found if found and found["protocols"] else None

    return await until(told)


async def read_all(stream: Stream) -> bytes:
    received = b""
    while chunk := await stream.receive_some():
        received += chunk
    return received


async def test_each_identifies_and_pings_the_other(meet: Any, until: Any) -> None:
    async with meet() as (ours, peer):
        told = await identified(ours, peer, until)
        assert told["protocol_version"] == VERSION
        assert "/interop/echo/1" in told["protocols"]
        assert await until(lambda: peer.ask("ping", peer=ours.peer_id)) < 1
        await until(lambda: ours.paths()[peer.peer].rtt is not None)
        await until(lambda: ours._kademlia.peers == 1)
        assert ours.counters.accepted + ours.counters.dialed == 1


async def test_eight_mebibytes_cross_each_way(meet: Any, until: Any) -> None:
    requests: list[bytes] = []

    async def note(stream: Stream) -> None:
        requests.append(await read_all(stream))
        await stream.reset()

    async with meet() as (ours, peer):
        ours.handle(CALLS, note)
        await identified(ours, peer, until)
        payload = await peer.ask("call", peer=ours.peer_id, size=SIZE)
        await until(lambda: requests)
        assert holds(requests[0], payload)
        # Its own request, sent back to it, makes it echo the payload to us.
        stream = await ours.open_stream(peer.peer, CALLS)
        await stream.send_all(requests[0])
        await stream._muxed.close()
        with trio.fail_after(10):
            assert holds(await read_all(stream), payload)
