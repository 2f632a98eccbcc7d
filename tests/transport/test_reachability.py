"""Dial-back on loopback: a nonce must come in by a new connection; words alone, and other addresses, count for nothing."""

import contextlib

import pytest
import trio

from daemon.transport.interface import TransportError
from daemon.transport.reachability import ASK, PROOF, DialBack, DialBackDone, Reachability
from daemon.transport.streams import open_stream
from protocol.wire.codec import FrameReader, decode, encode, frame
from protocol.wire.ids import PeerId

pytestmark = [pytest.mark.live, pytest.mark.slow]


async def test_a_peer_that_listens_is_found_reachable(running, until):
    async with running(2) as (asker, helper):
        await asker.connect(helper.peer_id, helper.addresses())
        asker.relay.reachability.look_again()
        await until(lambda: asker.relay.reachability.verdict.reachable is not None)
        verdict = asker.relay.reachability.verdict
        (port,) = asker.relay.observations.listening_ports()
        assert (verdict.reachable, verdict.port, verdict.asked) == (True, port, 1)
        assert len(asker.paths()) == 1, "a proof is no connection to a peer"


async def test_a_port_where_nobody_is_us_is_no_proof(running, until):
    async with running(2) as (asker, helper), await _silent_listener() as (port, _):
        asker.relay.reachability._ports = lambda: [port]
        await asker.connect(helper.peer_id, helper.addresses())
        asker.relay.reachability.look_again()
        await until(lambda: asker.relay.reachability.verdict.reachable is not None, seconds=15)
        assert asker.relay.reachability.verdict.reachable is False


async def test_a_mapped_udp_port_is_proved_by_a_nonce_of_ours(running, until):
    async with running(2) as (asker, helper):
        (port,) = asker.relay.udp.ports
        told = []
        asker.relay.reachability.judged = lambda came, udp: told.append((came, udp))
        for tried, came_in in ((port.port, True), (1, False)):
            asker.relay.reachability.udp_port = lambda tried=tried: tried
            await asker.connect(helper.peer_id, helper.addresses())
            asker.relay.reachability.look_again()
            await until(lambda: told)
            assert told.pop()[1] == {tried: came_in}
        port.knocked(bytes(16))
        assert not asker.relay.reachability._knocked, "a nonce that nobody waits for"


async def test_the_port_that_is_named_first_is_told_where_several_work(running):
    async with running(2) as (asker, helper):
        (port,) = asker.relay.observations.listening_ports()
        (other,) = helper.relay.observations.listening_ports()
        helper.relay.reachability._dial_back = lambda _host, _port, _nonce: _slowly(True, 0.1 if _port == port else 0.0)
        asker.relay.reachability._proved = _Everything()
        await asker.connect(helper.peer_id, helper.addresses())
        (conn,) = [c for conns in asker._swarm.connections.values() for c in conns]
        for ports in ((port, other), (other, port)):
            asker.relay.reachability._ports = lambda ports=ports: ports
            found, _ = await asker.relay.reachability._ask(conn.muxed_conn.peer_id, conn.muxed_conn, 0)
            assert found == ports[0], "though the other answered sooner"


class _Everything(set):
    def __contains__(self, _):
        return True


async def _slowly(answer, seconds):
    await trio.sleep(seconds)
    return answer


def test_golden_bytes():
    assert encode(DialBack(bytes(16), (4711, 80), 4711)).hex() == "93c410" + "00" * 16 + "92cd126750cd1267"
    assert encode(DialBackDone(4711)).hex() == "91cd1267"
    older = bytes.fromhex("92c410" + "00" * 16 + "91cd1267")
    assert decode(DialBack, older) == DialBack(bytes(16), (4711,), 0)


async def test_a_helper_that_lies_is_not_believed(running, until, monkeypatch):
    async with running(2) as (asker, helper):

        async def lie(*_):
            return True

        monkeypatch.setattr(helper.relay.reachability, "_dial_back", lie)
        await asker.connect(helper.peer_id, helper.addresses())
        asker.relay.reachability.look_again()
        await until(lambda: asker.relay.reachability.verdict.reachable is not None)
        assert asker.relay.reachability.verdict.reachable is False


@pytest.mark.parametrize("public", [True, False])
async def test_only_who_comes_from_a_public_address_is_a_stranger(running, until, monkeypatch, public):
    monkeypatch.setattr("daemon.transport.relay.is_public", lambda _: public)
    async with running(2) as (asker, helper):
        await asker.connect(helper.peer_id, helper.addresses())
        await until(lambda: helper._swarm.connections)
        assert helper.relay.stranger_came is public
        assert asker.relay.stranger_came is False


async def test_dial_backs_are_rationed(running, until):
    async with running(2) as (asker, helper):
        await asker.connect(helper.peer_id, helper.addresses())
        (conn,) = [c for conns in asker._swarm.connections.values() for c in conns]
        served = 0
        for _ in range(8):
            request = frame(encode(DialBack(bytes(16), (1,))))
            with contextlib.suppress(TransportError):  # a refusal is a reset
                stream = await open_stream(PeerId(helper.peer_id), conn.muxed_conn, ASK, early=request)
                raw = FrameReader().feed(await stream.receive_some())
                served += bool(raw and decode(DialBackDone, raw[0]).port == 0)
                await stream.reset()
        assert served <= 3
        assert helper.relay.reachability.served <= 3


async def test_without_a_question_a_proof_is_a_bad_handshake(running, until):
    async with running(1) as (ours,):
        (port,) = ours.relay.observations.listening_ports()
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(PROOF + bytes(16))
        await until(lambda: ours.counters.handshakes_failed)
        await stream.aclose()


def test_the_verdict_begins_unknown():
    assert Reachability(_Host(), list, bytes).verdict.reachable is None


class _Host:
    swarm = None


async def _silent_listener():
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    class Listening:
        async def __aenter__(self):
            return listeners[0].socket.getsockname()[1], listeners[0]

        async def __aexit__(self, *_):
            await listeners[0].aclose()

    return Listening()
