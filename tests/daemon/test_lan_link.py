"""mDNS answers the local network alone, and a flood with fewer bytes than it brings: sources on it, and what queries draw."""

import ipaddress
from typing import Any

import pytest

from daemon.lan_account import AnswerAccount
from daemon.lan_link import on_link

NETWORKS = [ipaddress.ip_network("192.168.1.0/24"), ipaddress.ip_network("fd00:1::/64")]


@pytest.mark.parametrize(
    ("source", "local"),
    [
        ("192.168.1.7", True), ("192.168.2.7", False), ("44.1.1.21", False), ("127.0.0.1", False), ("::ffff:192.168.1.7", True),
        ("::ffff:8.8.8.8", False), ("fd00:1::7", True), ("fd00:2::7", False), ("fe80::1%eth0", True), ("169.254.3.4", True),
    ],
)  # fmt: skip
def test_which_sources_are_on_the_link(source: str, local: bool) -> None:
    assert on_link(source, NETWORKS) is local


def drawn_in_a_minute(queries: int, answer: int) -> tuple[int, int]:
    """Bytes sent and drawn by so many queries of 61 bytes, evenly over a minute, where each answer has `answer` bytes."""
    account, drawn = AnswerAccount(), 0
    for number in range(queries):
        now = 60.0 * number / queries
        if account.query(61, now):
            account.sent(answer, now + 0.05)
            drawn += answer
    return 61 * queries, drawn


@pytest.mark.parametrize("answer", [325, 1_000, 3_000])
@pytest.mark.parametrize("queries", [1, 2, 5, 10, 20, 40, 60, 200, 1_000, 20_000])
def test_a_minute_of_queries_draws_less_than_it_brings_but_for_one_answer(queries: int, answer: int) -> None:
    sent, drawn = drawn_in_a_minute(queries, answer)
    assert answer <= drawn <= sent / 2 + 6 * 60 + answer
    if sent >= 2 * (answer + 6 * 60):
        assert drawn < sent


def test_answers_are_a_second_apart_and_what_nobody_asked_for_is_no_debt() -> None:
    account = AnswerAccount()
    account.sent(5_000, 0.0)
    assert [account.query(10_000, at) for at in (1.0, 1.5, 2.0, 2.5)] == [True, False, True, False]
    account.sent(5_000, 2.6)
    assert not account.query(61, 4.0)
    assert account.query(61, 4.0 + 5_000 / 6), "a debt is forgotten in time"


def test_an_answer_that_was_held_back_is_a_debt_too() -> None:
    account = AnswerAccount()
    assert account.query(61, 0.0)
    account.sent(343, 1.12)  # as zeroconf does where it gave the same answer within the last second
    assert not account.query(61, 1.13)


PROGRAM = """
import socket, time
import trio
from daemon.lan_discovery import LanDiscovery
PEER = "12D3KooWRpRMTtJfBF5tJFtLWhaB8XHSurC2eFeDhudVYzMT6DS3"
NAME = "045f703270045f756470056c6f63616c00"
QUERY = bytes.fromhex("000000000001000000000000" + NAME + "000c0001")
UNICAST = bytes.fromhex("000000000001000000000000" + NAME.upper() + "000c8001")

def drawn(source, query, count):
    received, end = 0, None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as group:
        asker.bind((source, 0))
        asker.settimeout(0.01)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            group.setsockopt(socket.SOL_SOCKET, option, 1)
        group.bind(("224.0.0.251", 5353))
        member = socket.inet_aton("224.0.0.251") + socket.inet_aton("10.9.0.1")
        group.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        group.setblocking(False)
        while end is None or time.monotonic() < end:
            if count:
                asker.sendto(query, ("10.9.0.1", 5353))
                count -= 1
            elif end is None:
                end = time.monotonic() + 1
            for reader in (asker, group):
                try:
                    datagram = reader.recv(9000)
                except (TimeoutError, BlockingIOError):
                    continue
                if datagram[2] & 0x80:
                    received += 28 + len(datagram)
    return received

async def main():
    discovery = LanDiscovery(PEER, lambda: [f"/ip4/10.9.0.1/tcp/7/p2p/{PEER}"], lambda *_: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(discovery.run)
        with trio.fail_after(15):
            while not discovery.counters["announced"]:
                await trio.sleep(0.05)
        await trio.sleep(2.5)  # what it announces of its own accord is no answer
        for what, source, query, count in (
            ("elsewhere", "127.0.0.1", QUERY, 5), ("lone", "10.9.0.1", QUERY, 1), ("flood", "10.9.0.1", QUERY, 200),
            ("unicast", "10.9.0.1", UNICAST, 200),
        ):
            answers = await trio.to_thread.run_sync(drawn, source, query, count)
            print("drawn", what, count * (28 + len(query)), answers, flush=True)
        nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.mark.live
@pytest.mark.slow
def test_queries_from_elsewhere_draw_nothing_and_floods_less_than_they_bring(in_own_network: Any) -> None:
    done = in_own_network(PROGRAM)
    rows = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("drawn ")]
    measured = {what: (int(sent), int(drawn)) for what, sent, drawn in rows}
    print(measured)
    assert measured["elsewhere"][1] == 0, done.stderr
    assert 0 < measured["lone"][1] < 700, done.stderr
    for what in ("flood", "unicast"):
        assert measured[what][1] < measured[what][0], done.stderr
