"""Our transport against rust-libp2p, as the lattica wheel ships it: each dials, and a megabyte crosses its Yamux each way.

It leaves every peer whose identify names another protocol version than its own, so ours says the same for these tests.
"""

import hashlib
from typing import Any

import libp2p.identity.identify.identify as library
import pytest
import trio

from daemon.transport.interface import Stream

pytestmark = [pytest.mark.interop, pytest.mark.live, pytest.mark.slow]

VERSION = "/ipfs/kad/1.0.0"
CALLS = "/rpc/req-resp/1.0.0"
SIZE = 1 << 20


@pytest.fixture(autouse=True)
def _same_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "PROTOCOL_VERSION", VERSION)


def holds(message: bytes, digest: str) -> bool:
    """Whether `SIZE` bytes with this hash stand somewhere in `message`, among headers whose format is not ours to know."""
    return any(hashlib.sha256(message[at : at + SIZE]).hexdigest() == digest for at in range(len(message) - SIZE + 1))


async def read_all(stream: Stream) -> bytes:
    received = b""
    while chunk := await stream.receive_some():
        received += chunk
    return received


async def test_each_identifies_and_pings_the_other(lattica: Any, meet: Any, until: Any) -> None:
    async with meet(lattica) as ours:
        told = await until(lambda: lattica.ask("identified", peer=ours.peer_id))
        assert told["protocol_version"] == VERSION
        assert "/interop/echo/1" in told["protocols"]
        assert await until(lambda: lattica.ask("ping", peer=ours.peer_id)) < 1
        await until(lambda: ours.paths()[lattica.peer].rtt is not None)
        assert ours.counters.accepted + ours.counters.dialed == 1


async def test_a_megabyte_crosses_each_way(lattica: Any, meet: Any, until: Any) -> None:
    requests: list[bytes] = []

    async def note(stream: Stream) -> None:
        requests.append(await read_all(stream))
        await stream.reset()

    async with meet(lattica) as ours:
        ours.handle(CALLS, note)
        await until(lambda: lattica.ask("identified", peer=ours.peer_id))
        digest = await lattica.ask("call", peer=ours.peer_id, size=SIZE)
        await until(lambda: requests)
        assert holds(requests[0], digest)
        # Its own request, sent back to it, makes it echo the payload to us.
        stream = await ours.open_stream(lattica.peer, CALLS)
        await stream.send_all(requests[0])
        await stream._muxed.close()  # type: ignore[attr-defined]
        with trio.fail_after(10):
            assert holds(await read_all(stream), digest)


async def test_we_find_what_it_provides(lattica: Any, meet: Any, until: Any) -> None:
    async with meet(lattica) as ours:
        await until(lambda: ours._kademlia.peers == 1)
        await lattica.ask("provide", key="model/rust")
        print(await lattica.ask("providers", key="model/rust"))
        assert lattica.peer in await ours.find_providers("model/rust")
