"""The driver of port mappings under a virtual clock: when the gateway is asked, and that everything is given back."""

import socket
from struct import pack

import pytest
import trio
import trio.testing

from daemon.transport import gateway
from daemon.transport.gateway import default_gateway
from daemon.transport.port_mapper import PortMapper
from nat import natpmp
from nat.natpmp import Protocol
from nat.port_mapping import Ask, Granted, Method, Refused

SEEN = frozenset({"44.1.1.21"})


class Gateway:
    """Grants what is asked for; as slow as a real one."""

    def __init__(self, method=Method.NAT_PMP, host="44.1.1.21"):
        self.method, self.host = method, host
        self.asked, self.released, self.told = [], [], None

    def methods(self):
        return (Method.PCP, Method.NAT_PMP)

    def forget(self):
        pass

    async def hear(self, told):
        self.told = told
        await trio.sleep_forever()

    async def ask(self, ask):
        await trio.sleep(0.5)
        self.asked.append((round(trio.current_time()), ask.method, ask.protocol))
        return Granted(self.host, ask.external_port, 3600) if ask.method is self.method else Refused("no answer in time")

    async def release(self, release):
        await trio.sleep(0.5)
        self.released.append(release.protocol)


class Running:
    def __init__(self, nursery, **given):
        self.gateway, self.seen, self.proofs = Gateway(**given), frozenset(), 0
        ports = {Protocol.TCP: 4711, Protocol.UDP: 4711}
        self.mapper = PortMapper(self.gateway, lambda: ports, lambda: self.seen, self.prove)
        nursery.start_soon(self.mapper.run)

    def prove(self):
        self.proofs += 1

    async def meet(self):
        self.seen = SEEN
        self.mapper.look_again()
        await trio.sleep(10)


async def test_it_asks_once_peers_see_us_behind_a_nat_and_gives_back_at_the_end(autojump_clock: trio.testing.MockClock):
    async with trio.open_nursery() as nursery:
        one = Running(nursery)
        await trio.sleep(5000)
        assert one.gateway.asked == []
        assert one.mapper.view()["state"] == "idle"
        assert one.gateway.told is None, "no port is opened for its announcements"
        await one.meet()
        assert [method for _, method, _ in one.gateway.asked] == [Method.PCP, Method.NAT_PMP, Method.NAT_PMP]
        assert one.proofs
        assert one.mapper.view()["state"] == "unproved"
        assert one.mapper.outside(Protocol.TCP) is None
        one.mapper.judged(Protocol.TCP, [4711])
        assert one.mapper.outside(Protocol.TCP) == ("44.1.1.21", 4711)
        assert one.mapper.view()["proved"] == ["tcp"]
        await trio.sleep(4000)
        assert len(one.gateway.asked) == 3 + 2 * 2, "both were renewed twice"
        nursery.cancel_scope.cancel()
    assert sorted(one.gateway.released) == [Protocol.TCP, Protocol.UDP]


async def test_a_gateway_that_announces_that_it_lost_its_mappings_is_asked_at_once(autojump_clock: trio.testing.MockClock):
    async with trio.open_nursery() as nursery:
        one = Running(nursery)
        await one.meet()
        one.gateway.told(Method.NAT_PMP, 5000)
        await trio.sleep(100)
        one.gateway.told(Method.NAT_PMP, 5100)
        await trio.sleep(10)
        asked = len(one.gateway.asked)
        one.gateway.told(Method.NAT_PMP, 1)
        await trio.sleep(10)
        assert [protocol for _, _, protocol in one.gateway.asked[asked:]] == [Protocol.TCP, Protocol.UDP]
        nursery.cancel_scope.cancel()


async def test_many_announcements_ask_for_each_mapping_once(autojump_clock: trio.testing.MockClock):
    async with trio.open_nursery() as nursery:
        one = Running(nursery)
        await one.meet()
        asked = len(one.gateway.asked)
        for _ in range(1000):
            one.gateway.told(Method.NAT_PMP, 5000)
            one.gateway.told(Method.NAT_PMP, 1)
        await trio.sleep(10)
        assert [protocol for _, _, protocol in one.gateway.asked[asked:]] == [Protocol.TCP, Protocol.UDP]
        nursery.cancel_scope.cancel()


async def test_announcements_are_heard_of_our_gateway_alone(monkeypatch):
    told = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(natpmp, "ANNOUNCED_PORT", free.getsockname()[1])
    listening = gateway.Gateway(bytes, lambda: "127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listening.hear, lambda *announced: told.append(announced))
        await trio.testing.wait_all_tasks_blocked()
        messages = [
            ("127.0.0.2", pack("!BBHI4s", 0, 128, 0, 7, socket.inet_aton("44.1.1.21"))),
            ("127.0.0.1", b"\xff" * 24),
            ("127.0.0.1", pack("!BBHI4s", 0, 128, 0, 8, socket.inet_aton("44.1.1.21"))),
            ("127.0.0.1", pack("!BBBBII12x", 2, 0x80, 0, 0, 0, 9)),
            ("127.0.0.1", pack("!BBBBII12x", 2, 0x80, 0, 1, 0, 10)),
        ]
        for source, raw in messages:
            with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as announcing:
                await announcing.bind((source, 0))
                await announcing.sendto(raw, ("127.0.0.1", natpmp.ANNOUNCED_PORT))
        with trio.fail_after(5):
            while len(told) < 2:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert told == [(Method.NAT_PMP, 8), (Method.PCP, 9)]


async def test_another_network_begins_anew(autojump_clock: trio.testing.MockClock):
    async with trio.open_nursery() as nursery:
        one = Running(nursery)
        await one.meet()
        one.seen = frozenset()
        one.mapper.forget()
        await trio.sleep(5000)
        assert one.mapper.view()["state"] == "idle"
        assert len(one.gateway.asked) == 3
        await one.meet()
        assert len(one.gateway.asked) == 6
        nursery.cancel_scope.cancel()


async def test_what_a_gateway_answers_after_a_change_counts_for_nothing(autojump_clock: trio.testing.MockClock):
    async with trio.open_nursery() as nursery:
        one = Running(nursery, method=Method.PCP)
        one.seen = SEEN
        one.mapper.look_again()
        await trio.sleep(0.2)
        one.seen = frozenset()
        one.mapper.forget()
        await trio.sleep(10)
        assert one.mapper.view() | {"methods": [], "upnp_installed": False} == {
            "state": "idle", "method": None, "methods": [], "tcp_port": None, "udp_port": None, "proved": [], "ends_s": None,
            "reason": None, "upnp_installed": False,
        }  # fmt: skip
        nursery.cancel_scope.cancel()


async def test_a_private_outside_address_is_given_back(autojump_clock: trio.testing.MockClock):
    async with trio.open_nursery() as nursery:
        one = Running(nursery, method=Method.PCP, host="100.64.1.2")
        await one.meet()
        assert one.mapper.view()["state"] == "double_nat"
        assert one.gateway.released == [Protocol.TCP]
        assert one.proofs == 0
        nursery.cancel_scope.cancel()


def test_the_gateway_is_the_default_route_of_least_metric(tmp_path, monkeypatch):
    table = tmp_path / "route"
    table.write_text(
        "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
        "wlan0 00000000 FE01A8C0 0003 0 0 600 00000000 0 0 0\n"
        "eth0 00000000 0101A8C0 0003 0 0 100 00000000 0 0 0\n"
        "eth0 0001A8C0 00000000 0001 0 0 100 00FFFFFF 0 0 0\n"
        "tun0 00000000 00000000 0001 0 0 50 00000000 0 0 0\n"
    )
    monkeypatch.setattr("daemon.transport.gateway._ROUTES", table)
    assert default_gateway() == "192.168.1.1"
    monkeypatch.setattr("daemon.transport.gateway._ROUTES", tmp_path / "none")
    assert default_gateway() is None


@pytest.mark.parametrize("method", [Method.PCP, Method.NAT_PMP])
async def test_answers_to_others_and_nonsense_are_passed_over(method, monkeypatch):
    """A gateway in this process, which says three things that are no answer to ours before each that is."""

    def answers(asked):
        if method is Method.NAT_PMP:
            if asked == natpmp.ask_address():
                yield pack("!BBHI4s", 0, 128, 0, 1, socket.inet_aton("44.1.1.21"))
                return
            for opcode, internal, external in ((130, 9, 1), (129, 4711, 2), (130, 4711, 4712)):
                yield pack("!BBHIHHI", 0, opcode, 0, 1, internal, external, 60)
            return
        mapping = bytearray(asked[24:])
        mapping[18:20] = (4712).to_bytes(2, "big")
        mapping[20:36] = bytes(10) + b"\xff\xff" + socket.inet_aton("44.1.1.21")
        for place in (0, 12, 17, None):  # another nonce, protocol, internal port; then ours
            told = bytearray(mapping)
            if place is not None:
                told[place] = 17 if place == 12 else told[place] ^ 1
                told[19] ^= 1
            yield bytes([2, 0x81, 0, 0]) + pack("!II", 60, 1) + bytes(12) + bytes(told)

    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        await there.bind(("127.0.0.1", 0))
        monkeypatch.setattr(natpmp, "PORT", there.getsockname()[1])
        asking = gateway.Gateway(lambda count: bytes(range(count)), lambda: "127.0.0.1")

        async def serve():
            while True:
                asked, client = await there.recvfrom(2000)
                for answer in (b"", b"\xff" * 70, *answers(asked)):
                    await there.sendto(answer, client)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with trio.fail_after(5):
                told = await asking.ask(Ask(method, Protocol.TCP, 4711, 4711, 60))
            nursery.cancel_scope.cancel()
    assert told == Granted("44.1.1.21", 4712, 60, 1)
