"""A database of the first schema, as the first code wrote it, opens today and keeps every row; a newer one is left alone."""

import sqlite3
from pathlib import Path

import pytest

from crdt_store.claims import Kind
from crdt_store.own_log import Statement
from crdt_store.storage import SCHEMA_VERSION, ClaimStorage
from crdt_store.store import ClaimStore, StorageError
from daemon.claim_archive import check_file

FIRST_SCHEMA = Path(__file__).parents[1] / "vectors" / "claims_schema_1.sql"
"""Four claims of alice in two epochs, two of bob, and the proof that a third one forked. Never to be written anew."""


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "claims.sqlite"
    with sqlite3.connect(path) as db:
        db.executescript(FIRST_SCHEMA.read_text())
    db.close()
    return path


def rows(path):
    with sqlite3.connect(path) as db:
        claims = db.execute("SELECT * FROM claims ORDER BY 1, 2, 3").fetchall()
        forks = db.execute("SELECT * FROM forks ORDER BY 1").fetchall()
    db.close()
    return [claims, forks]


def test_the_first_schema_opens_and_loses_nothing(old, alice, bob, author):
    before = rows(old)
    assert [len(table) for table in before] == [6, 1]
    store = ClaimStore(ClaimStorage(old), alice.key, 5)
    assert (len(store.replica), store.damaged) == (6, 0)
    assert [fork.issuer for fork in store.replica.forks()] == [author(3).id]
    assert store.epoch == 22, "above the epoch that was opened last, though the clock is far behind"
    said = store.record(Statement(bob.id, Kind.ROUND_WON), 5)
    store.close()
    claims, forks = rows(old)
    assert [row for row in claims if row[4] != said.raw] == before[0]
    assert forks == before[1]
    with sqlite3.connect(old) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
    db.close()
    assert check_file(old).fault == ""


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, SCHEMA_VERSION + 7])
@pytest.mark.parametrize("open_file", [ClaimStorage, ClaimStorage.reading])
def test_a_newer_schema_is_refused_in_one_sentence_and_nothing_is_lost(old, version, open_file):
    with sqlite3.connect(old) as db:
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    before, held = old.read_bytes(), rows(old)
    with pytest.raises(StorageError, match=f"newer swarmd .schema {version}, known: {SCHEMA_VERSION}.; upgrade") as refused:
        open_file(old)
    assert "\n" not in str(refused.value)
    assert (old.read_bytes(), rows(old)) == (before, held)
