"""A rust-libp2p peer for the interop tests, by way of lattica; run by the Python of its own environment, in a folder of its own.

Speaks the same JSON lines as peer.mjs. Usage: lattica_peer.py FOLDER
"""

import hashlib
import json
import os
import socket
import sys
from typing import Any

from lattica import ConnectionHandler, Lattica, rpc_method

KADEMLIA = "/ipfs/kad/1.0.0"
"""Its DHT's protocol, which is at the same time the protocol version that it demands of each peer in identify."""

_calls: list[Any] = []


class Service(ConnectionHandler):  # type: ignore[misc]
    """What it serves on /rpc/req-resp/1.0.0."""

    @rpc_method  # type: ignore[untyped-decorator]
    def echo(self, payload: bytes) -> bytes:
        return payload


def free_port() -> int:
    """A port for it to listen on: it does not tell the one it took itself."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def build(folder: str, address: str, bootstraps: list[str]) -> Lattica:
    builder = Lattica.builder().with_mdns(False).with_upnp(False).with_autonat(False).with_dcutr(False)
    builder = builder.with_listen_addrs([address]).with_protocol(KADEMLIA).with_bootstraps(bootstraps)
    return builder.with_storage_path(f"{folder}/blocks").with_dht_db_path(f"{folder}/dht").with_key_path(folder).build()


def call(service: Service, peer: str, size: int) -> dict[str, str]:
    """Send `peer` a call with `size` random bytes: how they begin, and their hash. What becomes of the call does not matter."""
    payload = os.urandom(size)
    _calls.append(service.get_stub(peer).echo(payload))
    return {"head": payload[:16].hex(), "sha256": hashlib.sha256(payload).hexdigest()}


def answer(node: Lattica, service: Service, ask: str, given: dict[str, Any]) -> Any:
    match ask:
        case "call":
            return call(service, **given)
        case "ping":
            return node.get_peer_rtt(given["peer"])
        case "identified":
            told = node.get_peer_info(given["peer"])
            return told and {name: getattr(told, name) for name in dir(told) if not name.startswith("_")}
        case _:
            raise ValueError(f"cannot {ask}")


def main() -> None:
    folder, *bootstraps = sys.argv[1:]
    address = f"/ip4/127.0.0.1/tcp/{free_port()}"
    node = build(folder, address, bootstraps)
    service = Service(node)
    print(json.dumps({"peer": node.peer_id(), "address": f"{address}/p2p/{node.peer_id()}"}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        number = question.pop("id")
        try:
            reply = {"answer": answer(node, service, question.pop("ask"), question)}
        except Exception as error:  # noqa: BLE001 - the test is told
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"id": number, **reply}, default=str), flush=True)


if __name__ == "__main__":
    main()
