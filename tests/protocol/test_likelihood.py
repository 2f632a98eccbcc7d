"""The likelihood messages: golden bytes packed by another package, bounds, and engines' floats in whole numbers."""

import json
import math
from pathlib import Path

import msgpack
import pytest

from protocol.delta import TokenLogprob, TopToken
from protocol.extras import Extras
from protocol.job import Job, Role, Sampling, Turn
from protocol.likelihood import (
    FLOOR_MICRO,
    MAX_REPLY_BYTES,
    MAX_WEIGHED_TOKENS,
    Likelihood,
    LikelihoodRequest,
    Rival,
    Weighed,
    read_reply,
    read_request,
    weighed,
    write_reply,
)
from protocol.wire.codec import Message, encode
from protocol.wire.errors import Code, RemoteError

ROWS = [json.loads(line) for line in (Path(__file__).parent.parent / "vectors" / "likelihood.jsonl").read_text().splitlines()]
JOB = Job((Turn(Role.USER, "mod 83 7"),), model="tiny-all")
GOLDEN: dict[str, Message] = {
    "request": LikelihoodRequest(JOB, "ab" * 32, "6", 2),
    "request, defaults": LikelihoodRequest(JOB, "cd" * 32, "gfedcba"),
    "likelihood": Likelihood((Weighed(b"6", 900, (Rival(b"6", 900), Rival(b"5", 7_688_568))), Weighed(b"", 2_735))),
}


def plain(value: object) -> object:
    if isinstance(value, dict):
        return bytes.fromhex(str(value["hex"]))
    return [plain(one) for one in value] if isinstance(value, list) else value


def test_every_message_has_its_row() -> None:
    assert [row["name"] for row in ROWS] == list(GOLDEN)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_messages_keep_their_bytes(row: dict[str, object]) -> None:
    golden = bytes.fromhex(str(row["hex"]))
    assert encode(GOLDEN[str(row["name"])]) == golden
    assert msgpack.packb(plain(row["plain"])) == golden


def refused(request: LikelihoodRequest) -> Code:
    with pytest.raises(RemoteError) as caught:
        read_request(encode(request))
    return caught.value.code


def test_a_request_is_bounded() -> None:
    assert read_request(encode(GOLDEN["request"])) == GOLDEN["request"]
    assert refused(LikelihoodRequest(JOB, "ab" * 32, "")) is Code.MALFORMED
    assert refused(LikelihoodRequest(JOB, "ab" * 31, "6")) is Code.MALFORMED
    assert refused(LikelihoodRequest(JOB, "ab" * 32, "6", MAX_WEIGHED_TOKENS + 1)) is Code.MALFORMED
    assert refused(LikelihoodRequest(JOB, "ab" * 32, "\N{SNOWMAN}" * 6000)) is Code.MALFORMED
    assert refused(LikelihoodRequest(Job(JOB.turns, extras=Extras(top_logprobs=3)), "ab" * 32, "6")) is Code.MALFORMED
    assert refused(LikelihoodRequest(Job((Turn(Role.USER, "x" * 300_000),), Sampling()), "ab" * 32, "6")) is Code.OVERSIZED


def test_what_an_engine_says_becomes_whole_numbers() -> None:
    said = TokenLogprob("g", -0.0009, [103], (TopToken("g", -0.0009, [103]), TopToken("\N{SNOWMAN}", -math.inf)))
    assert weighed([said]) == (Weighed(b"g", 900, (Rival(b"g", 900), Rival("\N{SNOWMAN}".encode(), FLOOR_MICRO))),)
    assert weighed([TokenLogprob("a", 0.2), TokenLogprob("b", math.nan)]) == (Weighed(b"a", 0), Weighed(b"b", FLOOR_MICRO))
    extremes = [TokenLogprob("a", 1e308), TokenLogprob("b", -1e308)]
    assert weighed(extremes) == (Weighed(b"a", 0), Weighed(b"b", FLOOR_MICRO)), "times a million they are infinite"


def test_an_answer_is_bounded_whatever_the_engine_says() -> None:
    longest = Weighed(bytes(256), FLOOR_MICRO, tuple(Rival(bytes(256), FLOOR_MICRO) for _ in range(20)))
    raw = write_reply([longest] * 500)
    assert len(raw) <= MAX_REPLY_BYTES
    assert 90 < len(read_reply(raw)) <= MAX_WEIGHED_TOKENS
    with pytest.raises(RemoteError):
        read_reply(b"\x91\xdd\xff\xff\xff\xff")
