"""Who names addresses pays for what goes there: the account of relayed connections, and that a Hello is as long as its price."""

import pytest
from libp2p.connection_types import ConnectionType

from daemon.transport.blind_credit import BlindCredit
from daemon.transport.muxer import MuxedConnection
from nat.punch_messages import (
    DIAL_BYTES,
    KNOCK_BYTES,
    KNOCKS,
    MAX_CANDIDATES,
    MAX_MESSAGE_BYTES,
    MOST_KNOCKS,
    Endpoint,
    Hello,
    decode_hello,
    padded,
)
from protocol.wire.codec import encode


class Muxed(MuxedConnection):
    def __init__(self, received):
        self.received = received


class Conn:
    def __init__(self, received, kind=ConnectionType.RELAYED):
        self.muxed_conn, self.kind, self.is_closed = Muxed(received), kind, False

    def get_connection_type(self):
        return self.kind


class Swarm:
    def __init__(self, *conns):
        self.conns = conns

    def get_connections(self, _peer):
        return list(self.conns)


def test_no_more_is_sent_than_came_and_nothing_twice():
    conn = Conn(1000)
    credit = BlindCredit(Swarm(conn))
    assert credit.afford("peer", 240, 8) == 4
    assert credit.afford("peer", 240, 8) == 0
    assert credit.afford("peer", 20, 8) == 2
    conn.muxed_conn.received += 500
    assert credit.afford("peer", 240, 8) == 2
    assert credit.afford("peer", 240, 0) == 0


def test_all_relayed_connections_pay_and_a_direct_one_does_not():
    credit = BlindCredit(Swarm(Conn(100), Conn(9000, ConnectionType.DIRECT), Conn(250)))
    assert credit.afford("peer", 90, 64) == 3
    assert credit.afford("peer", 90, 64) == 0


@pytest.mark.parametrize("tcp", [0, 1, MAX_CANDIDATES])
@pytest.mark.parametrize("udp", [0, 1, 2, MAX_CANDIDATES])
def test_a_hello_pays_for_its_addresses_and_fits(tcp, udp):
    places = [Endpoint(f"2600:1234:5678:9abc:def0:1234:5678:{number:x}", 65535) for number in range(MAX_CANDIDATES)]
    raw = encode(padded(Hello(bytes(16), tuple(places[:tcp]), tuple(places[:udp]), 5, 5, 32769, 65535)))
    assert decode_hello(raw).padding == bytes(len(decode_hello(raw).padding))
    assert tcp * DIAL_BYTES + min(MOST_KNOCKS, udp * KNOCKS) * KNOCK_BYTES <= len(raw) <= MAX_MESSAGE_BYTES
