"""hivemind's P2P layer (a Go libp2p daemon beside each process), unary calls only; runs in its own environment.

Importing the package would import torch, which its calls do not use: two package files are stepped over and torch is a stand-in.
"""

import asyncio
import importlib
import importlib.util
import sys
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from bench.loads import ACK, Kind
from bench.peers.on_asyncio import run

CONNECT_SECONDS = 20


def _load() -> tuple[Any, Any, Any]:
    found = importlib.util.find_spec("hivemind")
    assert found is not None
    assert found.origin is not None
    root = Path(found.origin).parent
    for name, folder in (("hivemind", root), ("hivemind.utils", root / "utils")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    sys.modules.setdefault("torch", MagicMock())
    p2p, messages = importlib.import_module("hivemind.p2p"), importlib.import_module("hivemind.proto.p2pd_pb2")
    return p2p.P2P, p2p.PeerID, messages.StreamInfo


P2P, PeerID, Message = _load()
"""`Message` is one of its own that has a bytes field: it carries nothing but protobuf messages."""

NODE = {
    "host_maddrs": ["/ip4/127.0.0.1/tcp/0"],
    "auto_nat": False,
    "nat_port_map": False,
    "use_relay": False,
    "use_ipfs": False,
    "dht_mode": "client",
}


def _message(body: bytes) -> Any:
    return Message(peer=b"p", addr=body, proto="x")


@asynccontextmanager
async def serve() -> AsyncIterator[str]:
    """Serve the unary methods; gives the full address."""

    async def echo(request: Any, _context: Any) -> Any:
        return request

    async def ack(_request: Any, _context: Any) -> Any:
        return _message(ACK)

    node = await P2P.create(**NODE)
    await node.add_protobuf_handler("echo", echo, Message)
    await node.add_protobuf_handler("ack", ack, Message)
    yield str((await node.get_visible_maddrs())[0])
    await node.shutdown()


class HivemindCaller:
    """Unary calls by name."""

    def __init__(self, node: Any, peer: Any) -> None:
        self._node = node
        self._peer = peer

    async def unary(self, kind: Kind, body: bytes) -> bytes:
        reply = await self._node.call_protobuf_handler(self._peer, kind.value, _message(body), Message)
        came: bytes = reply.addr
        return came

    async def push(self, body: bytes) -> int:
        raise NotImplementedError

    async def items(self, count: int, size: int) -> int:
        raise NotImplementedError


@asynccontextmanager
async def dial(address: str) -> AsyncIterator[HivemindCaller]:
    """Connect to a server's full address."""
    node = await asyncio.wait_for(P2P.create(initial_peers=[address], **NODE), CONNECT_SECONDS)
    yield HivemindCaller(node, PeerID.from_base58(address.rsplit("/p2p/", 1)[1]))
    await node.shutdown()


if __name__ == "__main__":
    run(serve, dial)
