"""The choice among live paths, and the sentence that explains it."""

import pytest

from nat.paths import Choice, LivePath, choose

RELAY, DIRECT, PUNCHED = LivePath("relayed", 0.001, 900), LivePath("direct", 0.200, 1), LivePath("punched", 0.050, 5)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], None),
        ([RELAY], Choice(0, "the only path is relayed")),
        ([RELAY, DIRECT], Choice(1, "direct is better than relayed")),
        ([RELAY, PUNCHED, DIRECT], Choice(2, "direct is better than punched and relayed")),
        ([DIRECT, LivePath("direct", 0.1, 1)], Choice(1, "of 2 direct paths it has the shortest round trip, 100 ms")),
        ([DIRECT, LivePath("direct", None, 99)], Choice(0, "of 2 direct paths it has the shortest round trip, 200 ms")),
        ([DIRECT, LivePath("direct", 0.205, 30)], Choice(1, "of 2 equal direct paths it is the oldest, 30 s")),
        ([LivePath("direct", None, 3), LivePath("direct", None, 9)], Choice(1, "of 2 equal direct paths it is the oldest, 9 s")),
        ([LivePath("novel", 0.001, 9), RELAY], Choice(1, "relayed is better than novel")),
    ],
)
def test_choose(paths, expected):
    assert choose(paths) == expected
