"""The wire form of every round message: golden bytes, bounds, and what a reader refuses.

`REWRITE=1` writes tests/vectors/round.jsonl anew; review the change as text: bytes that peers have signed must not move.
"""

import json
import os
from pathlib import Path

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.job import Job, Role, Sampling, Turn
from protocol.round.messages import (
    DOMAIN,
    MAX_HEADER_AGE_MS,
    MAX_MESSAGE_BYTES,
    Acceptance,
    Attestation,
    Ballot,
    Candidate,
    Conflict,
    Header,
    Judgement,
    Leave,
    Listing,
    Reveal,
    Roster,
    RoundMessage,
    Seal,
    Step,
    Verdict,
    check_invitation,
    open_message,
    read_header,
    sign,
    slot_of,
)
from protocol.wire.codec import encode
from protocol.wire.envelope import Envelope, public_bytes, seal
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import PeerId, peer_id_of
from tests.sim.round_network import UNIX_MS, key_of

VECTORS = Path(__file__).parents[2] / "vectors" / "round.jsonl"
KEY = key_of(0)
ALICE, BOB = (peer_id_of(public_bytes(key_of(number))) for number in (1, 2))
ROUND, PARENT, OTHER = b"\x11" * 32, b"\x22" * 32, b"\x33" * 32

HEADER = Header(
    job=Job((Turn(Role.USER, "6*7="),), Sampling(max_tokens=16, temperature_milli=700), "lab/tiny"),
    candidates=(Candidate(ALICE, "lab/tiny", b"\xaa" * 32, 2000), Candidate(BOB, "tiny-b", b"\xbb" * 32, 1000, 500, -250)),
    nonce=b"\x44" * 32,
    created_ms=UNIX_MS,
    committee=2,
)
MESSAGES: dict[str, RoundMessage] = {
    "header": HEADER,
    "acceptance": Acceptance(ROUND, b"\x55" * 32),
    "leave": Leave(ROUND, "busy", "deadline"),
    "roster": Roster(ROUND, (b"envelope",), (ALICE, BOB)),
    "seal": Seal(ROUND, PARENT, "seal", b"\x66" * 32),
    "ballot_seal": Seal(ROUND, PARENT, "ballot_seal", b"\x66" * 32),
    "list": Listing(ROUND, PARENT, Step.REVEAL, (OTHER,), (Conflict(PARENT, OTHER),)),
    "reveal": Reveal(ROUND, PARENT, "42", b"\x77" * 32, 3),
    "ballot": Ballot(ROUND, PARENT, b"\x88" * 32, (Judgement(0, 1, -1500), Judgement(1, 0, 8000))),
    "ballot_rationale": Ballot(ROUND, PARENT, b"\x88" * 32, (Judgement(0, 1, -1500),), "41 is odd, 6*7 is even"),
    "verdict": Verdict(ROUND, PARENT, b"\x99" * 32),
    "verdict_none": Verdict(ROUND, PARENT, b"", "too few"),
    "attestation": Attestation(ROUND, PARENT, b"\x99" * 32),
}


def golden() -> dict[str, dict[str, str]]:
    rows = [json.loads(line) for line in VECTORS.read_text().splitlines()]
    return {row["name"]: row for row in rows}


def test_golden_bytes() -> None:
    rows = []
    for name, message in MESSAGES.items():
        raw = sign(message, KEY)
        rows.append(
            {"name": name, "payload": encode(message).hex(), "envelope": raw.hex(), "address": open_message(raw).hash.hex()}
        )
    if "REWRITE" in os.environ:
        VECTORS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {row["name"]: row for row in rows} == golden()


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_bytes_open_to_the_message_and_are_plain_messagepack(name: str) -> None:
    row = golden()[name]
    held = open_message(bytes.fromhex(row["envelope"]))
    assert held.message == MESSAGES[name]
    assert msgpack.packb(msgpack.unpackb(bytes.fromhex(row["payload"]))) == bytes.fromhex(row["payload"])


@pytest.mark.parametrize(
    ("name", "slot"),
    [("seal", "seal"), ("ballot_seal", "ballot_seal"), ("list", "list-reveal"), ("reveal", "reveal"), ("verdict", "verdict")],
)
def test_each_kind_has_one_slot(name: str, slot: str) -> None:
    assert slot_of(MESSAGES[name]) == slot


def changed(**fields: object) -> bytes:
    return sign(msgspec.structs.replace(HEADER, **fields), KEY)


BAD = {
    "another domain": (seal("claim", encode(HEADER), KEY), Code.BAD_SIGNATURE),
    "not an envelope": (b"\x00", Code.MALFORMED),
    "an unknown kind": (seal(DOMAIN, msgpack.packb(["nonsense", 1]), KEY), Code.MALFORMED),
    "a payload of nested arrays": (seal(DOMAIN, b"\x91" * 5000 + b"\xc0", KEY), Code.MALFORMED),
    "too long": (b"\x00" * (MAX_MESSAGE_BYTES + 1), Code.OVERSIZED),
    "an answer of too many bytes": (sign(Reveal(ROUND, PARENT, "\u4e2d" * 40_000, bytes(32)), KEY), Code.OVERSIZED),
    "a changed byte": (sign(HEADER, KEY)[:-1] + b"\x00", Code.BAD_SIGNATURE),
    "a signer of another kind": (encode(Envelope(PeerId(ALICE), encode(HEADER), bytes(64))), Code.BAD_SIGNATURE),
}


@pytest.mark.parametrize("name", BAD)
def test_a_reader_refuses(name: str) -> None:
    raw, code = BAD[name]
    with pytest.raises(RemoteError) as error:
        open_message(raw)
    assert error.value.code is code


def test_a_field_appended_by_a_later_version_is_ignored() -> None:
    longer = msgpack.packb([*msgpack.unpackb(encode(MESSAGES["leave"])), 1])
    assert open_message(seal(DOMAIN, longer, KEY)).message == MESSAGES["leave"]


def test_a_header_signed_before_jobs_had_extras_still_opens() -> None:
    fields = msgpack.unpackb(encode(HEADER))
    assert fields[1].pop() is None
    assert read_header(seal(DOMAIN, msgpack.packb(fields), KEY)).message == HEADER


def test_a_header_is_refused_with_a_doubled_candidate_or_a_huge_job() -> None:
    with pytest.raises(RemoteError, match="twice"):
        read_header(changed(candidates=HEADER.candidates * 2))
    with pytest.raises(RemoteError, match="prompt"):
        read_header(changed(job=Job((Turn(Role.USER, "x" * 300_000),))))
    with pytest.raises(RemoteError, match="does not start with a header"):
        read_header(sign(MESSAGES["leave"], KEY))


@pytest.mark.parametrize("skew_ms", [0, 30_000, -30_000, MAX_HEADER_AGE_MS])
def test_clock_skew_of_half_a_minute_excludes_nobody(skew_ms: int) -> None:
    check_invitation(HEADER, ALICE, UNIX_MS + skew_ms)


def test_a_stale_header_and_a_foreign_one_are_refused_with_a_reason() -> None:
    with pytest.raises(RemoteError, match="121 s from our time"):
        check_invitation(HEADER, ALICE, UNIX_MS + 121_000)
    with pytest.raises(RemoteError, match="does not invite us"):
        check_invitation(HEADER, peer_id_of(public_bytes(key_of(9))), UNIX_MS)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_as_a_peers_fault(raw: bytes) -> None:
    with pytest.raises(RemoteError):
        open_message(raw)
    with pytest.raises(RemoteError):
        open_message(seal(DOMAIN, raw, KEY))


def test_a_leave_of_a_peer_that_knows_no_codes_is_read() -> None:
    shorter = msgpack.packb(msgpack.unpackb(encode(MESSAGES["leave"]))[:3])
    assert open_message(seal(DOMAIN, shorter, KEY)).message == Leave(ROUND, "busy")
