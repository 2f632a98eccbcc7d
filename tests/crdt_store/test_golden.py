"""The bytes of claims, proofs and sync messages, as version 1 of the wire has them: a changed byte is a changed protocol."""

import json
from pathlib import Path

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from crdt_store.checkpoints import compact, open_record, stretch
from crdt_store.claims import Claim, Kind, open_claim, read_claim, sign_claim
from crdt_store.forks import ForkProof, open_proof
from crdt_store.heads import IssuerHeads, LogHead, LogRow, fork_id, log_id
from crdt_store.outcomes import Forked, Inserted
from crdt_store.replica import Replica
from crdt_store.sync_messages import (
    FOLDED,
    Announcement,
    HeadsReply,
    HeadsRequest,
    IssuerSummary,
    Pick,
    Range,
    RangeChunk,
    RangeRequest,
)
from protocol.wire.codec import decode, encode
from protocol.wire.ids import public_key_of

VECTORS = Path(__file__).parents[1] / "vectors"


def rows(name):
    return [json.loads(line) for line in (VECTORS / name).read_text().splitlines()]


CLAIMS = rows("claims.jsonl")
KINDS = rows("claims_kinds.jsonl")
A, B = (row["fields"]["issuer"] for row in (CLAIMS[0], CLAIMS[-1]))
H = bytes(range(32))

ROW = LogRow(b"log name", 5, b"hea").pack()

MESSAGES = {
    "heads request": HeadsRequest(H, A, (A, B), 36, 24, 14_000),
    "heads reply": HeadsReply(H, (IssuerSummary(A, H),), True, (IssuerHeads(A, (LogHead(1, 2, H),), 3),), 7, b"c" * 16, ROW),
    "range request": RangeRequest((Range(A, 1_700_000_000_000, 5, 1000),), (B,), Pick(b"log name", 5, 20).pack(), FOLDED),
    "range chunk": RangeChunk((b"claim",), (ForkProof(b"one", b"two"),), (b"record",)),
    "announcement": Announcement(H, (IssuerHeads(A, (LogHead(1, 2, H),)),), (), (ForkProof(b"one", b"two"),)),
}


@pytest.mark.parametrize("row", CLAIMS + KINDS, ids=lambda row: row["name"])
def test_claims(row):
    fields = {k: bytes.fromhex(v) if k in ("previous", "evidence") else v for k, v in row["fields"].items()}
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(row["seed"]))
    signed = sign_claim(Claim(**fields), key)
    assert signed.raw.hex() == row["raw"]
    assert signed.hash.hex() == row["hash"]
    assert open_claim(bytes.fromhex(row["raw"])) == signed
    signer, payload, _ = msgpack.unpackb(signed.raw)
    assert signer == fields["issuer"]
    assert msgpack.unpackb(payload) == list(fields.values())


def test_every_kind_has_its_number_and_its_bytes():
    assert [(row["name"], row["fields"]["kind"]) for row in KINDS] == [(kind.name.lower(), kind.value) for kind in Kind]
    replica = Replica()
    assert {type(replica.insert(bytes.fromhex(row["raw"]))) for row in KINDS} == {Inserted}


def test_a_replica_of_the_golden_claims_has_the_golden_hash():
    replica = Replica()
    kinds = [type(replica.insert(bytes.fromhex(row["raw"]))) for row in CLAIMS]
    assert kinds == [Inserted] * 4 + [Forked, Inserted]
    expected = rows("claims_replica.jsonl")[0]
    assert replica.digest().hex() == expected["digest"]
    assert open_proof(ForkProof(*(bytes.fromhex(raw) for raw in expected["proof"]))) == replica.forks()[0]


@pytest.mark.parametrize("row", rows("claims_sync.jsonl"), ids=lambda row: row["name"])
def test_sync_messages(row):
    message = MESSAGES[row["name"]]
    raw = bytes.fromhex(row["raw"])
    assert encode(message).hex() == row["raw"]
    assert decode(type(message), raw) == message
    assert msgpack.packb(msgpack.unpackb(raw)) == raw
    appended = msgpack.packb([*msgpack.unpackb(raw), "a field of a later version"])
    assert decode(type(message), appended) == message


def test_every_message_has_a_vector():
    assert {row["name"] for row in rows("claims_sync.jsonl")} == set(MESSAGES)


def test_short_names_of_logs_and_proofs():
    """What sketches and picks call a log and a proof must be the same everywhere."""
    assert log_id(A, 1_700_000_000_000).hex() == "78a8e69a31043194"
    assert fork_id(A).hex() == "7916c77026b83487"


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("heads request", 3),
        ("heads reply", 4),
        ("range request", 2),
        ("range request", 3),
        ("range chunk", 2),
        ("announcement", 3),
    ],
)
def test_messages_of_before_there_were_sketches_and_checkpoints_are_understood(name, fields):
    message = MESSAGES[name]
    old = decode(type(message), msgpack.packb(msgpack.unpackb(encode(message))[:fields]))
    assert msgpack.unpackb(encode(old))[:fields] == msgpack.unpackb(encode(message))[:fields]


@pytest.mark.parametrize("row", rows("claims_checkpoint.jsonl"), ids=lambda row: row["name"])
def test_checkpoints(row):
    """The bytes of a checkpoint follow from the claims, and the claims, and their hashes, from its bytes."""
    entries = [read_claim(bytes.fromhex(raw)) for raw in row["claims"]]
    made = compact(entries)
    assert made.raw.hex() == row["raw"]
    opened = open_record(bytes.fromhex(row["raw"]))
    assert [(one.claim, one.hash) for one in stretch(opened)] == [(one.claim, one.hash) for one in entries]
    previous, subjects, skills, told, claim = msgpack.unpackb(made.raw)
    assert (previous, claim) == (entries[0].claim.previous, entries[-1].raw)
    for entry, (subject, kind, skill, value, later, evidence) in zip(entries, told, strict=False):
        said = entry.claim
        assert subjects[32 * subject : 32 * subject + 32] == public_key_of(said.subject)
        assert (kind, skills[skill], value, entries[-1].claim.time + later) == (said.kind, said.skill, said.value, said.time)
        assert (evidence or bytes(32)) == said.evidence
