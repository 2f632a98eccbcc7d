"""What a round costs beside its models: the simulated half of `bench.rounds`, which no processor's speed changes."""

from bench.rounds import FAR_LIMIT_MS, far, shortfalls


def test_21_members_over_80_ms_coordinate_in_under_a_second() -> None:
    """Ten times one way: invited, accepted, seated, sealed, and three lists with what answers them."""
    figures = far(21, 0.08)
    assert figures["ms"] == 800.0
    assert figures["transcript_messages"] < figures["messages"]
    assert shortfalls({"far": figures}) == []
    assert shortfalls({"far": figures | {"ms": FAR_LIMIT_MS}}) != []
