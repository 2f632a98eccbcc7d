"""Ports of mappings just made: which of them are a count, and what comes next."""

from random import Random

import pytest

from nat.port_count import AHEAD, PortCount, count_of


@pytest.mark.parametrize(
    ("ports", "count"),
    [
        ([], None),
        ([40000, 40001], None),
        ([40000, 40001, 40002], PortCount(40003, 1)),
        ([40000, 40002, 40004, 40006], PortCount(40008, 2)),
        ([40006, 40004, 40002], PortCount(40000, -2)),
        ([40000, 40001, 40003, 40004], PortCount(40005, 1)),
        ([40000, 40002, 40008, 40010], PortCount(40012, 2)),
        ([40000, 40000, 40001], None),
        ([40000, 40001, 40000], None),
        ([40000, 40001, 40040], None),
        ([17820, 18076, 18332, 18588], PortCount(18844, 256)),
        ([17820, 18076, 18588, 18844], PortCount(19100, 256)),
        ([59998, 59999, 40000], None),
        ([65533, 65534, 65535], PortCount(1, 1)),
        ([65530, 65532, 65534], PortCount(2, 2)),
        ([6, 4, 2], PortCount(65534, -2)),
    ],
)
def test_the_count_follows_from_fresh_ports(ports, count):
    assert count_of(ports) == count


def test_random_ports_are_no_count():
    rng = Random(7)
    assert not any(count_of([rng.randrange(1024, 65536) for _ in range(4)]) for _ in range(50_000))
    assert sum(count_of([rng.randrange(1024, 65536) for _ in range(3)]) is not None for _ in range(50_000)) < 50


@pytest.mark.parametrize("count", [PortCount(40003, 1), PortCount(10, -2), PortCount(65530, 3)])
def test_the_ports_ahead_can_be_sent_to(count):
    ahead = count.ahead()
    assert len(ahead) == AHEAD
    assert all(1 <= port <= 65535 for port in ahead)
    assert ahead[0] == count.following
