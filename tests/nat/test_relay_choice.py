"""Which relays are held: a table."""

import pytest

from nat.relay_choice import RelayCandidate as One
from nat.relay_choice import choose

TABLE = {
    "nobody": ([], ()),
    "the two nearest": ([One("a", 0.09, False), One("b", 0.01, False), One("c", 0.05, False)], ("b", "c")),
    "configured before an unmeasured stranger": ([One("s", None, False), One("c", None, False, configured=True)], ("c", "s")),
    "a measured stranger before an unmeasured one": ([One("c", None, False, configured=True), One("s", 0.2, False)], ("s", "c")),
    "one that failed waits": ([One("a", 0.01, False, ready=11.0), One("b", 0.05, False)], ("b",)),
    "and is asked again later": ([One("a", 0.01, False, ready=10.0), One("b", 0.05, False)], ("a", "b")),
    "what is held stays": ([One("a", 0.05, True), One("b", 0.06, True), One("c", 0.04, False)], ("a", "b")),
    "a clearly nearer one replaces the farthest": (
        [One("a", 0.05, True), One("b", 0.2, True), One("c", 0.04, False)], ("a", "c"),
    ),
    "not while circuits run over it": (
        [One("a", 0.05, True), One("b", 0.2, True, circuits=1), One("c", 0.04, False)], ("a", "b"),
    ),
    "nor for a few milliseconds": ([One("a", 0.01, True), One("b", 0.02, True), One("c", 0.005, False)], ("a", "b")),
    "a full relay is far": ([One("a", 0.01, False, load=0.9), One("b", 0.05, False), One("c", 0.06, False)], ("b", "c")),
    "a full one that we hold gives way": (
        [One("a", 0.03, True), One("b", 0.02, True, load=0.9), One("c", 0.03, False)], ("a", "c"),
    ),
    "half full is not worth a change": (
        [One("a", 0.03, True), One("b", 0.03, True, load=0.4), One("c", 0.03, False)], ("a", "b"),
    ),
    "a silent one is replaced and held on to": (
        [One("a", 0.01, True, silent=True), One("b", 0.02, True), One("c", 0.03, False)], ("b", "c", "a"),
    ),
    "a silent one that we do not hold is not asked": ([One("a", 0.01, False, silent=True), One("b", 0.02, True)], ("b",)),
    "too many held": ([One("a", 0.01, True), One("b", 0.02, True), One("c", 0.03, True)], ("a", "b")),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_choice(name):
    candidates, wanted = TABLE[name]
    assert choose(candidates, 2, 10.0) == wanted
    assert choose(candidates[::-1], 2, 10.0) == wanted
