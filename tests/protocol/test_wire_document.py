"""docs/wire.md says what the code does: every limit, frame, field, breach and code that it must name, with today's value."""

import re
from pathlib import Path

import pytest

from protocol import rpc_frames
from protocol.embedding import Embedded, EmbedJob
from protocol.extras import Extras, TurnNote
from protocol.job import Job, Sampling, Turn
from protocol.likelihood import Likelihood, LikelihoodRequest, Rival, Weighed
from protocol.round.messages import Candidate, Durations, FoldParameters, Judgement, RoundMessage
from protocol.round.pulling import PullReply, PullRequest
from protocol.rpc_events import Breach
from protocol.wire import limits
from protocol.wire.codec import Message
from protocol.wire.errors import Code

TEXT = (Path(__file__).parent.parent.parent / "docs" / "wire.md").read_text()
LIMITS = {name: value for module in (rpc_frames, limits) for name, value in vars(module).items() if isinstance(value, int)}
SPOKEN = [*rpc_frames.AnyFrame.__args__, *RoundMessage.__args__]
PARTS = [Candidate, Durations, FoldParameters, Judgement, PullRequest, PullReply, Job, Extras, TurnNote, Turn, Sampling]
PARTS += [EmbedJob, Embedded, LikelihoodRequest, Likelihood, Weighed, Rival]


def row_of(kind: type[Message]) -> str:
    return next(line for line in TEXT.splitlines() if re.match(rf"\| (`?\w+`? \| )?{kind.__name__} \|", line))


def test_the_table_of_limits_is_the_code() -> None:
    listed = {name: int(value) for value, name in re.findall(r"\| (\d+) \| `([A-Z_]+)` \|", TEXT)}
    internal = {"VERSION", "OLDEST_VERSION", "MAX_CREDIT_BYTES"}
    assert listed == {name: value for name, value in LIMITS.items() if name.isupper() and name not in internal}


@pytest.mark.parametrize("kind", SPOKEN, ids=lambda kind: kind.__name__)
def test_every_message_has_its_tag_and_fields_in_order(kind: type[Message]) -> None:
    row = row_of(kind)
    assert row.split("|")[1].strip().strip("`") == str(kind.__struct_config__.tag)
    places = [row.index(f"`{name}`") for name in kind.__struct_fields__]
    assert places == sorted(places)


@pytest.mark.parametrize("kind", PARTS, ids=lambda kind: kind.__name__)
def test_every_part_has_its_fields_in_order(kind: type[Message]) -> None:
    places = [row_of(kind).index(f"`{name}`") for name in kind.__struct_fields__]
    assert places == sorted(places)


@pytest.mark.parametrize("word", [*(code.value for code in Code), *(breach.value for breach in Breach)])
def test_every_code_and_breach_is_named(word: str) -> None:
    assert f"`{word}`" in TEXT
