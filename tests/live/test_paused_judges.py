"""R9 with real processes: judges that are stopped in the middle of judging cost a round their ballots, never its quorum."""

import pytest

from bench.rounds import RIGHT, paused, shortfalls
from daemon.cli.demo import MODELS

pytestmark = [pytest.mark.live, pytest.mark.slow]


def test_half_of_the_judges_stopped_is_no_verdict_and_a_quarter_is_the_others() -> None:
    quarter, half = paused(MODELS[:4], (1, 2))
    # A judge may have sealed its ballot just before it was stopped: then it is missing among those that reveal theirs.
    assert (quarter["verdict"], quarter["answer"]) == (True, RIGHT)
    assert quarter["judged"] >= quarter["quorum"]
    assert (half["verdict"], half["stopped"]) == (False, 2)
    assert "members" in half["reason"]
    assert "where 3 are needed" in half["reason"]
    assert shortfalls({"paused 1": quarter, "paused 2": half}) == []
