"""Our own log on disk: durable before it is sent, never forked; and files that are not what they should be."""

import shutil
import sqlite3
import stat

import pytest

from crdt_store.audit import Audit
from crdt_store.checkpoints import compact
from crdt_store.claims import MAX_LOG_CLAIMS, Kind
from crdt_store.forks import ForkProof, open_proof
from crdt_store.memory import MemoryStorage
from crdt_store.outcomes import Forked, Inserted
from crdt_store.own_log import OwnLogFrozen, Statement, next_epoch
from crdt_store.room import Bounds
from crdt_store.storage import SCHEMA_VERSION, ClaimStorage
from crdt_store.store import ClaimStore, StorageError
from protocol.wire.errors import LocalError, RemoteError

NOW = 1_700_000_000_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "claims.db"


@pytest.fixture(params=["sqlite", "memory"])
def reopen(request, path, alice):
    """A function that opens the store of alice anew, as a restarted daemon does; the disk stays."""
    memory = MemoryStorage()
    opened = []

    def open_store(now_ms=NOW, bounds=None):
        if opened:
            opened.pop().close()
        opened.append(ClaimStore(memory if request.param == "memory" else ClaimStorage(path), alice.key, now_ms, bounds))
        return opened[-1]

    yield open_store
    opened.pop().close()


def say(store, bob, count=1, now_ms=NOW):
    return [store.record(Statement(bob.id, Kind.CALL_SERVED, "math", value), now_ms) for value in range(count)]


def test_every_start_opens_a_new_epoch_and_keeps_the_old_ones(reopen, bob):
    first = reopen()
    said = say(first, bob, 3)
    second = reopen(now_ms=NOW - 10_000)  # the clock went back: the epoch does not
    assert second.epoch == first.epoch + 1
    said += say(second, bob, 2)
    third = reopen(now_ms=NOW + 5_000)
    assert third.epoch == NOW + 5_000
    assert list(third.replica.claims()) == said
    assert [entry.claim.seq for entry in said] == [0, 1, 2, 0, 1]
    assert third.replica.digest() == second.replica.digest()
    assert third.replica.forks() == ()


def test_epochs_rise_even_where_nothing_was_said_and_the_clock_stands(reopen):
    assert [reopen().epoch - NOW for _ in range(3)] == [0, 1, 2]


def test_what_is_written_once_is_not_written_again(alice, bob):
    class CountingStorage(MemoryStorage):
        written = 0

        def add_foreign(self, changes):
            self.written += len(changes)
            super().add_foreign(changes)

    storage = CountingStorage()
    store = ClaimStore(storage, alice.key, NOW)
    for entry in bob.log(5):
        store.insert_many([entry.raw])
    store.insert_many([])
    assert storage.written == 5


def test_a_full_log_goes_on_in_a_new_epoch(reopen, bob, monkeypatch):
    monkeypatch.setattr("crdt_store.own_log.MAX_LOG_CLAIMS", 3)
    said = say(reopen(), bob, 7)
    assert [entry.claim.seq for entry in said] == [0, 1, 2, 0, 1, 2, 0]
    assert [entry.claim.epoch - NOW for entry in said] == [0, 0, 0, 1, 1, 1, 2]
    assert MAX_LOG_CLAIMS == 1_000


def test_copies_forks_and_retired_epochs_survive_a_restart(reopen, bob, author):
    bounds = Bounds(issuer_claims=2, issuer_epochs=10)
    store = reopen(bounds=bounds)
    carol = author(3)
    raws = [e.raw for epoch in (1, 2, 3) for e in carol.log(2, epoch)]
    assert all(isinstance(outcome, Inserted) for outcome in store.insert_many(raws))
    outcomes = store.insert_many([bob.claim(0).raw, b"\x90", bob.claim(0, value=1).raw])
    assert [type(outcome) for outcome in outcomes] == [Inserted, RemoteError, Forked]
    say(store, bob, 2)
    assert len(store._storage.load().claims) == 2 + 2, "what is frozen or retired leaves the disk, too"
    again = reopen(now_ms=NOW + 1, bounds=bounds)
    assert again.replica.digest() == store.replica.digest()
    assert [fork.issuer for fork in again.replica.forks()] == [bob.id]
    assert {entry.claim.epoch for entry in again.replica.claims(carol.id)} == {3}
    assert again.damaged == 0


def test_a_restored_copy_never_forks(tmp_path, path, alice, bob):
    """The old copy claims again from a place that the lost original had filled: the new epoch keeps both honest."""
    store = ClaimStore(ClaimStorage(path), alice.key, NOW)
    seen = say(store, bob, 3)
    store.close()
    backup = tmp_path / "backup.db"
    shutil.copy(path, backup)
    lost = ClaimStore(ClaimStorage(path), alice.key, NOW + 1_000)
    seen += say(lost, bob, 3)
    lost.close()
    restored = ClaimStore(ClaimStorage(backup), alice.key, NOW + 2_000)
    seen += say(restored, bob, 3)
    witness = ClaimStore(MemoryStorage(), bob.key, NOW)
    assert all(isinstance(outcome, Inserted) for outcome in witness.insert_many([entry.raw for entry in seen]))
    restored.close()


def test_a_restored_copy_with_the_old_clock_steps_aside_as_soon_as_it_sees_its_past(path, tmp_path, alice, bob):
    ClaimStore(ClaimStorage(path), alice.key, NOW).close()
    backup = tmp_path / "backup.db"
    shutil.copy(path, backup)
    lost = ClaimStore(ClaimStorage(path), alice.key, NOW)
    past = [say(lost, bob, 2)]
    lost.close()
    later = ClaimStore(ClaimStorage(path), alice.key, NOW + 50)
    past.append(say(later, bob, 2))
    later.close()
    restored = ClaimStore(ClaimStorage(backup), alice.key, NOW)
    assert restored.epoch == lost.epoch  # clock and file both went back: only the mesh can tell
    for log in past:
        restored.insert_many([entry.raw for entry in log])
    new = say(restored, bob, 1)[0]
    assert new.claim.epoch > later.epoch
    assert restored.replica.forks() == ()
    restored.close()


def test_our_past_that_the_mesh_gave_back_counts_at_the_next_start(reopen, alice):
    store = reopen()
    store.insert_many([alice.claim(0, epoch=NOW + 500).raw])
    assert reopen().epoch == NOW + 501


def test_a_proof_against_our_own_key_stops_our_log_and_nothing_else(reopen, alice, bob):
    store = reopen()
    said = say(store, bob, 1)
    twin = alice.claim(0, epoch=store.epoch, value=99)
    assert isinstance(store.insert_many([twin.raw])[0], Forked)
    with pytest.raises(OwnLogFrozen):
        say(store, bob)
    assert isinstance(store.insert_many([bob.claim(0).raw])[0], Inserted)
    with pytest.raises(OwnLogFrozen):
        say(reopen(now_ms=NOW + 9), bob)
    assert said


def test_a_failed_append_issues_nothing_and_the_next_takes_a_new_epoch(alice, bob):
    class FailingStorage(MemoryStorage):
        failing = False

        def append_own(self, entries):
            super().append_own(entries)  # the worst case: it failed, and yet it is on disk
            if self.failing:
                raise StorageError("the disk is full")

    storage = FailingStorage()
    store = ClaimStore(storage, alice.key, NOW)
    first = say(store, bob)[0]
    storage.failing = True
    with pytest.raises(StorageError):
        say(store, bob)
    storage.failing = False
    second = say(store, bob)[0]
    assert second.claim.epoch > first.claim.epoch
    assert second.claim.seq == 0
    again = ClaimStore(storage, alice.key, NOW + 5)
    assert again.replica.forks() == ()
    assert len(again.replica) == 3


def test_copies_that_found_no_disk_are_written_with_the_next_ones(alice, bob):
    class FailingStorage(MemoryStorage):
        failing = True

        def add_foreign(self, changes):
            if self.failing:
                raise StorageError("the disk is full")
            super().add_foreign(changes)

    storage = FailingStorage()
    store = ClaimStore(storage, alice.key, NOW)
    log = bob.log(3)
    assert isinstance(store.insert_many([log[0].raw])[0], Inserted)
    assert store.storage_error == "the disk is full"
    storage.failing = False
    store.insert_many([entry.raw for entry in log[1:]])
    assert store.storage_error is None
    assert storage.load().claims == [entry.raw for entry in log]


def fault_in(path):
    storage, audit = ClaimStorage.reading(path), Audit()
    audit.rows(storage.proofs()) and audit.rows(storage.rows(("", 0, 0), 1_000))
    storage.close()
    return audit.report.fault


def test_what_a_failing_disk_cost_leaves_no_hole_in_a_log(path, alice, bob, author, monkeypatch):
    """A claim on disk behind one that was given up would be taken for damage."""
    monkeypatch.setattr("crdt_store.store.MAX_UNSAVED", 20)
    storage = ClaimStorage(path)
    store = ClaimStore(storage, alice.key, NOW)
    log, other = bob.log(70), author(3).log(5)
    write = storage.add_foreign

    def fail(changes):
        raise StorageError("the disk is full")

    monkeypatch.setattr(storage, "add_foreign", fail)
    for start in range(0, 60, 15):
        store.insert_opened(log[start : start + 15])
        store.save()
    store.insert_fork(open_proof(ForkProof(author(4).claim(0, value=1).raw, author(4).claim(0, value=2).raw)))
    store.save()
    assert store.unsaved == 21
    monkeypatch.setattr(storage, "add_foreign", write)
    store.insert_opened([*log[60:], *other])
    store.save()
    assert (store.storage_error, store.unsaved, len(store.replica)) == (None, 0, 75)
    store.close()
    assert fault_in(path) == ""
    again = ClaimStore(ClaimStorage(path), alice.key, NOW)
    lengths = (again.replica.length(bob.id, 1), again.replica.length(author(3).id, 1))
    assert (lengths, len(again.replica.forks()), again.damaged) == ((20, 5), 1, 0)
    again.insert_many([compact(log[20:]).raw])
    again.close()
    assert fault_in(path) == ""


def test_a_full_disk_refuses_to_issue_and_recovers_without_a_restart(path, alice, bob):
    storage = ClaimStorage(path)
    store = ClaimStore(storage, alice.key, NOW)
    log = bob.log(200)
    pages = storage._db.execute("PRAGMA page_count").fetchone()[0]
    storage._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to a full disk
    store.insert_many([entry.raw for entry in log])
    assert "full" in store.storage_error
    with pytest.raises(StorageError, match="full"):
        say(store, bob, 50)
    held = len(list(store.replica.claims(alice.id)))
    storage._db.execute("PRAGMA max_page_count = 1000000")
    said = say(store, bob, 2)
    assert [entry.claim.seq for entry in said] == [0, 1]
    store.close()
    again = ClaimStore(ClaimStorage(path), alice.key, NOW + 9)
    assert len(list(again.replica.claims(bob.id))) == 200
    assert len(list(again.replica.claims(alice.id))) == held + 2
    assert again.replica.forks() == ()
    again.close()


def test_a_disk_that_turned_read_only_costs_writes_alone_and_says_so_in_one_sentence(path, alice, bob):
    storage = ClaimStorage(path)
    store = ClaimStore(storage, alice.key, NOW)
    said = say(store, bob, 2)
    storage._db.execute("PRAGMA query_only = ON")  # SQLite's own way: the error is that of a read-only file
    with pytest.raises(StorageError, match="readonly") as refused:
        say(store, bob)
    assert "\n" not in str(refused.value)
    log = bob.log(3)
    assert all(isinstance(outcome, Inserted) for outcome in store.insert_many([entry.raw for entry in log]))
    assert "readonly" in store.storage_error
    assert list(store.replica.claims()) == sorted(said + log, key=lambda e: (e.claim.issuer, e.claim.epoch, e.claim.seq))
    assert [row.parts[0] for row in storage.rows(("", 0, 0), 10)] == [entry.raw for entry in said]
    assert storage.integrity() == "ok"
    storage._db.execute("PRAGMA query_only = OFF")
    assert say(store, bob)[0].claim.epoch > said[0].claim.epoch
    store.close()
    again = ClaimStore(ClaimStorage(path), alice.key, NOW + 9)
    assert len(again.replica) == 6
    assert again.replica.forks() == ()
    again.close()


def test_an_epoch_out_of_range_is_our_fault():
    with pytest.raises(LocalError, match="clock"):
        next_epoch(0, 2**53)


@pytest.mark.slow
def test_the_file_is_private_and_belongs_to_one_process(path):
    storage = ClaimStorage(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(StorageError, match="in use"):
        ClaimStorage(path)
    storage.close()
    ClaimStorage(path).close()


def test_own_claims_are_synced_to_disk_at_every_commit(path, alice, monkeypatch):
    storage = ClaimStorage(path)
    seen = []
    storage._db.set_trace_callback(seen.append)
    storage.append_own([alice.claim(0)])
    storage.add_foreign([Inserted(alice.claim(0, epoch=2))])
    modes = [line.split()[-1] for line in seen if "synchronous" in line]
    assert modes == ["FULL", "NORMAL"]
    assert storage._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    storage.close()


def write_foreign_sqlite(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE other (x)")
    db.close()


def write_newer(path):
    ClaimStorage(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()


def write_torn(path):
    storage = ClaimStorage(path)
    storage.close()
    content = bytearray(path.read_bytes())
    content[4096 : 2 * 4096] = b"\xff" * 4096
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda path: path.write_bytes(b"not a database, but long enough to be taken for one" * 30), "is damaged"),
        (write_foreign_sqlite, "not one of claims"),
        (write_newer, "newer swarmd"),
        (write_torn, "is damaged"),
        (lambda path: path.mkdir(), "cannot be opened"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused_with_one_sentence(path, prepare, sentence):
    prepare(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StorageError, match=sentence) as refused:
        ClaimStorage(path).load()
    assert "\n" not in str(refused.value)
    assert before == (path.read_bytes() if path.is_file() else None)


def test_a_flipped_bit_in_a_row_costs_the_rest_of_that_log_alone(path, alice, bob):
    store = ClaimStore(ClaimStorage(path), alice.key, NOW)
    log, other = bob.log(5), bob.log(2, epoch=2)
    store.insert_many([entry.raw for entry in log + other])
    store.close()
    with sqlite3.connect(path) as db:
        raw = bytearray(log[2].raw)
        raw[-1] ^= 1  # in the signature, which nothing else would notice
        db.execute("UPDATE claims SET raw = ? WHERE epoch = 1 AND seq = 2", (bytes(raw),))
    db.close()
    again = ClaimStore(ClaimStorage(path), alice.key, NOW)
    assert again.damaged == 3
    assert list(again.replica.claims()) == log[:2] + other
    assert all(isinstance(outcome, Inserted) for outcome in again.insert_many([entry.raw for entry in log[2:]]))
    again.close()
    last = ClaimStore(ClaimStorage(path), alice.key, NOW)
    assert last.damaged == 0
    assert len(last.replica) == 7
    last.close()


@pytest.mark.slow
def test_a_power_loss_at_any_place_of_the_log_file_leaves_a_prefix(path, tmp_path, alice, bob):
    """What the disk held at the latest sync is there; what it held of a later write, cut anywhere, never stops the start."""
    store = ClaimStore(ClaimStorage(path), alice.key, NOW)
    said = say(store, bob, 3)
    wal = path.with_name("claims.db-wal")
    synced = wal.stat().st_size
    said += say(store, bob, 2)
    main, journal = path.read_bytes(), wal.read_bytes()
    store.close()
    lengths = set()
    for cut in range(synced, len(journal) + 512, 512):
        copy = tmp_path / f"cut-{cut}.db"
        copy.write_bytes(main)
        copy.with_name(copy.name + "-wal").write_bytes(journal[:cut])
        again = ClaimStore(ClaimStorage(copy), alice.key, NOW)
        held = list(again.replica.claims())
        assert held == said[: len(held)]
        assert again.epoch > store.epoch
        lengths.add(len(held))
        again.close()
    assert lengths == {3, 4, 5}
