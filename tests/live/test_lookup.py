"""Finding on a real mesh: what a lookup says of a model, of a killed and restarted peer, and of a squatter."""

from functools import partial
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from daemon.transport.host import Libp2pTransport
from daemon.transport.options import TransportOptions
from dht.records import ANY_KEY, model_key
from tests.live.conftest import Daemon, Starter, until

pytestmark = [pytest.mark.live, pytest.mark.slow]

MODEL = "tiny-add-mod"


def looked_up(daemon: Daemon, what: str) -> Any:
    return daemon.cli("lookup", what, "--json").json


def test_a_squatter_is_listed_and_overruled_and_a_restarted_peer_found_again(starter: Starter) -> None:
    serving = starter("serving", "--model", MODEL)
    address = serving.client.status()["addresses"][0]
    asking = starter("asking", "--no-model", "--join", address)
    until(lambda: looked_up(asking, MODEL)["providers"] == [serving.peer_id])
    assert looked_up(asking, serving.peer_id)["record"] is True
    nobody = asking.cli("lookup", "nobody/serves-this")
    assert (nobody.code, "the peers that must have it answered, and do not" in nobody.out) == (4, True), nobody.out + nobody.err

    async def squat() -> None:
        stranger = Libp2pTransport(Ed25519PrivateKey.generate(), TransportOptions(listen=("/ip4/127.0.0.1/tcp/0",), udp=False))
        async with stranger.running():
            for daemon in (serving, asking):
                await stranger.connect(daemon.peer_id, daemon.client.status()["addresses"])  # type: ignore[arg-type]
            for key in (model_key(MODEL), ANY_KEY):
                await stranger.provide(key)
            listed = await trio.to_thread.run_sync(looked_up, asking, MODEL)
            assert set(listed["providers"]) == {serving.peer_id, stranger.peer_id}
            ran = await trio.to_thread.run_sync(partial(asking.cli, "ask", "add 47 38", "--model", MODEL, "--json"))
            assert (ran.json["answer"], ran.json["peer_id"]) == ("85", serving.peer_id)
            assert len(ran.json["attempts"]) == 1, "the squatter was not even tried"

    trio.run(squat)
    serving.child.kill()
    serving.child.wait()
    again = starter("serving", "--model", MODEL, "--join", asking.client.status()["addresses"][0])
    assert again.peer_id == serving.peer_id
    until(lambda: serving.peer_id in looked_up(asking, MODEL)["providers"], 5.0)
    until(lambda: asking.cli("ask", "add 12 34", "--model", MODEL).out == "46\n", 5.0)
