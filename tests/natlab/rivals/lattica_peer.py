"""A peer by Lattica, run by the Python of its own environment in the current folder: prints who it is, then answers JSON lines.

Usage: lattica_peer.py PORT RELAY BOOTSTRAP...
"""

import json
import os
import sys
from typing import Any

from lattica import ConnectionHandler, Lattica, rpc_method

VERSION = "/ipfs/kad/1.0.0"
"""The protocol version that it demands of each peer, so the relay says the same."""


class Service(ConnectionHandler):  # type: ignore[misc]
    """What it serves."""

    @rpc_method  # type: ignore[untyped-decorator]
    def echo(self, payload: bytes) -> bytes:
        return payload


def build(port: str, relay: str, bootstraps: list[str]) -> Lattica:
    """Relays given and hole punching on, as for peers behind NATs; UPnP and mDNS would measure something else."""
    builder = Lattica.builder().with_mdns(False).with_upnp(False).with_dcutr(True).with_protocol(VERSION)
    builder = builder.with_listen_addrs([f"/ip4/0.0.0.0/udp/{port}/quic-v1", f"/ip4/0.0.0.0/tcp/{port}"])
    builder = builder.with_bootstraps(bootstraps).with_relay_servers([relay])
    return builder.with_storage_path("./blocks").with_dht_db_path("./dht").with_key_path(".").build()


def answer(node: Lattica, service: Service, ask: str, peer: str) -> Any:
    match ask:
        case "paths":
            return node.get_peer_addresses(peer)
        case "call":
            try:
                return {"right": service.get_stub(peer).echo(b"x" * 64).result(10) == b"x" * 64}
            except Exception as error:  # noqa: BLE001 - that is the result
                return {"right": False, "why": str(error)[:200]}
        case _:
            raise ValueError(f"cannot {ask}")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # it logs on standard output
    node = build(sys.argv[1], sys.argv[2], sys.argv[3:])
    service = Service(node)
    print(json.dumps({"peer": node.peer_id()}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(node, service, **json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
