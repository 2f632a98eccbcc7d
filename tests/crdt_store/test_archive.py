"""Archives of claims and the check of a database: what goes in comes out, and damage is named at its byte."""

import io
import sqlite3
import struct
from functools import cache

import pytest
import trio

import crdt_store.audit
from crdt_store.archive import FIRST, HEADER, ArchiveError, _frame, page, read, write
from crdt_store.audit import Audit
from crdt_store.checkpoints import compact, open_record, read_record
from crdt_store.forks import ForkProof, open_proof
from crdt_store.replica import Replica
from crdt_store.storage import ClaimStorage
from crdt_store.store import ClaimStore
from daemon.claim_archive import ClaimArchive, check_file

NOW = 1_700_000_000_000


@pytest.fixture
def one_verdict_per_claim(monkeypatch):
    """`open_record` and `open_proof` are pure functions: the same bytes need them once."""
    monkeypatch.setattr(crdt_store.audit, "open_record", cache(open_record))
    monkeypatch.setattr(crdt_store.audit, "open_proof", cache(open_proof))


@pytest.fixture
def replica(alice, bob, author):
    """Two honest logs of alice, and bob, who forked in his second."""
    held = Replica()
    forked = [*bob.log(2, epoch=1), *bob.log(2, epoch=2), bob.claim(0, epoch=2, value=9)]
    for entry in [*alice.log(4), *alice.log(3, epoch=7), *author(3).log(1), *forked]:
        held.insert(entry.raw)
    assert len(held.forks()) == 1
    return held


def records(replica, max_bytes=1 << 20):
    after, found = FIRST, []
    while after is not None:
        part = page(replica, after, max_bytes)
        found += part.records
        after = part.last
    return found


def archive(replica):
    return b"".join(write(records(replica)))


def put(replica, raw):
    for framed in read(io.BytesIO(raw).read):
        (replica.insert_proof if isinstance(framed.record, ForkProof) else replica.insert)(framed.record)
    return replica


def audit(raw):
    return Audit().archive(io.BytesIO(raw).read)


def test_the_round_trip_gives_the_same_state_and_the_same_bytes(replica):
    raw = archive(replica)
    again = put(Replica(), raw)
    assert again.digest() == replica.digest()
    assert archive(again) == raw
    assert put(again, raw).digest() == replica.digest()
    report = audit(raw)
    assert (report.claims, report.proofs, report.fault) == (len(replica), 1, "")


@pytest.mark.parametrize("max_bytes", [1, 500, 1000])
def test_pages_of_any_size_give_all_in_one_order(replica, max_bytes):
    assert records(replica, max_bytes) == records(replica)


def test_pages_are_whole_though_logs_grow_meanwhile(alice):
    held, log = Replica(), alice.log(6)
    for entry in log[:3]:
        held.insert(entry.raw)
    first = page(held, FIRST, 1)
    for entry in log[3:]:
        held.insert(entry.raw)
    assert [*first.records, *page(held, first.last, 1 << 20).records] == [entry.raw for entry in log]


def test_a_flipped_byte_at_any_place_is_named(replica, one_verdict_per_claim):
    raw = archive(replica)
    for place in range(len(raw)):
        for change in (0x01, 0x80, 0xFF) if place % 50 == 0 else (0x20,):
            bad = bytearray(raw)
            bad[place] ^= change
            assert audit(bytes(bad)).offset == place, place


def test_a_truncated_archive_is_named_at_its_end(replica, one_verdict_per_claim):
    raw = archive(replica)
    for length in range(0, len(raw), 7):
        report = audit(raw[:length])
        assert report.offset == length
        assert "\n" not in report.fault
    assert audit(raw + b"x").offset == len(raw)


def whole(*frames):
    return HEADER + b"".join(frames) + _frame(b"E", struct.pack(">Q", len(frames)))


def test_an_empty_archive_is_one():
    assert audit(whole()).fault == ""


def test_hostile_archives_are_refused_at_their_byte(alice, bob):
    good, other = alice.log(3), bob.log(2)
    proof_of_nothing = _frame(b"F", b"\x92\xc4\x01a\xc4\x01b")
    cases = {
        "unknown kind": (whole(_frame(b"Z", b"x")), 10),
        "empty claim": (whole(_frame(b"C", b"")), 11),
        "long claim": (whole(_frame(b"C", bytes(5000))), 11),
        "no claim": (whole(_frame(b"C", b"junk")), 18),
        "no proof": (whole(_frame(b"F", b"junk")), 18),
        "proof of nothing": (whole(proof_of_nothing), 18),
        "gap": (whole(_frame(b"C", good[0].raw), _frame(b"C", good[2].raw)), 10 + 12 + len(good[0].raw) + 8),
        "twice": (whole(_frame(b"C", good[0].raw), _frame(b"C", good[0].raw)), 10 + 12 + len(good[0].raw) + 8),
        "begins late": (whole(_frame(b"C", other[1].raw)), 18),
        "forged": (whole(_frame(b"C", good[0].raw[:-1] + bytes([good[0].raw[-1] ^ 1]))), 18),
        "miscounted": (HEADER + _frame(b"E", struct.pack(">Q", 1)), 18),
        "newer": (b"swarmdRA\x00\x03", 9),
        "other file": (b"GIF89a" + bytes(100), 0),
        "nothing": (b"", 0),
    }
    for name, (raw, offset) in cases.items():
        report = audit(raw)
        assert report.offset == offset, (name, report.fault)
        assert report.fault.startswith(f"byte {offset}: ")


def test_an_archive_without_an_end_needs_no_memory():
    endless = _frame(b"C", bytes(4096))
    seen = 0
    source = io.BytesIO(HEADER)

    def take(count):
        nonlocal seen, source
        found = source.read(count)
        while len(found) < count:
            source = io.BytesIO(endless)
            found += source.read(count - len(found))
        seen += 1
        if seen > 400:
            raise ArchiveError(0, "enough")
        return found

    with pytest.raises(ArchiveError, match="enough"):
        for _ in read(take):
            pass


# The database


@pytest.fixture
def database(tmp_path, alice, bob, author):
    path = tmp_path / "claims.sqlite"
    store = ClaimStore(ClaimStorage(path), alice.key, NOW)
    third = author(3)
    store.insert_many([entry.raw for entry in [*bob.log(5), *bob.log(2, epoch=2), *third.log(2), third.claim(0, value=9)]])
    store.close()
    return path


def test_a_whole_database_is_whole_and_stays_as_it_is(database):
    before = database.read_bytes()
    report = check_file(database)
    assert (report.claims, report.proofs, report.fault) == (7, 1, "")
    assert database.read_bytes() == before
    ClaimStorage(database).close()


def test_a_changed_byte_of_a_row_is_named(database, bob):
    raw = bob.log(3)[2].raw
    for place in (0, len(raw) // 2, len(raw) - 1):
        bad = bytearray(raw)
        bad[place] ^= 4
        with sqlite3.connect(database) as db:
            db.execute("UPDATE claims SET raw = ? WHERE epoch = 1 AND seq = 2", (bytes(bad),))
        db.close()
        report = check_file(database)
        assert (report.row, report.offset) == (f"claim {bob.id} 1/2", place)
        assert "this byte was changed" in report.fault


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE claims SET checksum = zeroblob(16) WHERE seq = 1 AND epoch = 1", "do not belong together"),
        ("UPDATE claims SET checksum = x'' WHERE seq = 1 AND epoch = 1", "its checksum was changed"),
        ("DELETE FROM claims WHERE seq = 1 AND epoch = 1", "stands where 1 belongs"),
        ("UPDATE claims SET seq = 9 WHERE seq = 1 AND epoch = 2", "under the key of another"),
        ("UPDATE forks SET epoch = 9", "under the key of another"),
        ("UPDATE forks SET first = second", "do not belong together"),
    ],
)
def test_what_else_may_be_wrong_with_rows_is_told(database, statement, sentence):
    with sqlite3.connect(database) as db:
        assert db.execute(statement).rowcount == 1
    db.close()
    report = check_file(database)
    assert sentence in report.fault
    assert report.row
    assert "\n" not in report.fault


class Compacting(ClaimStorage):
    """A database whose rows are put together as soon as the first page of them was read."""

    store: ClaimStore
    pages = 0

    def rows(self, after, limit):
        found = super().rows(after, limit)
        self.pages += 1
        if self.pages == 1:
            assert sum(self.store.compact(issuer, 100) for issuer in self.store.replica.issuers())
            self.store.save()
        return found


class Syncing:
    def __init__(self):
        self.storing = trio.Lock()

    def announce(self):
        """Nobody hears of it."""


async def test_a_database_is_whole_though_it_is_compacted_between_two_pages(tmp_path, alice, bob, author):
    storage = Compacting(tmp_path / "claims.sqlite")
    store = storage.store = ClaimStore(storage, alice.key, NOW)
    store.insert_many([entry.raw for number in (2, 3) for entry in author(number).log(600)])
    report = await ClaimArchive(store, storage, Syncing()).check()
    assert (report.fault, report.claims, storage.pages) == ("", 1200, 3)
    store.close()


def test_rows_that_overlap_are_a_fault_everywhere_else(tmp_path, alice, bob):
    log, other = bob.log(8), bob.log(8, value=1)

    def rows(*entries):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.sqlite"
        ClaimStore(storage := ClaimStorage(path), alice.key, NOW)
        storage.append_own(entries)
        found = storage.rows(("", 0, 0), 100)
        storage.close()
        return found

    for last, fault in ((compact(log[2:8]), ""), (compact(other[2:8]), "stands where 4"), (compact(log[5:8]), "stands where 4")):
        for rewritten in (False, True):
            check = Audit()
            assert check.rows(rows(*log[:4]))
            wanted = fault if rewritten else "stands where 4"
            assert check.rows(rows(last), rewritten=rewritten) is (wanted == "")
            assert wanted in check.report.fault
    check = Audit()
    assert not check.rows(rows(*log[:4], compact(log[2:8])), rewritten=True)
    assert audit(b"".join(write([*(e.raw for e in log[:4]), compact(log[2:8]).raw]))).fault


async def test_an_import_reads_each_record_once_and_counts_the_claims_of_a_duplicate(tmp_path, alice, bob, monkeypatch):
    storage = ClaimStorage(tmp_path / "claims.sqlite")
    store = ClaimStore(storage, alice.key, NOW)
    log = bob.log(40)
    store.insert_many([compact(log[:10]).raw])
    forged = bytearray(log[30].raw)
    forged[-1] ^= 1
    page = [compact(log[:10]).raw, compact(log[10:30]).raw, compact(log[10:30]).raw, b"none", bytes(forged), log[32].raw]
    read = []

    def counted(raw):
        read.append(raw)
        return read_record(raw)

    for module in ("daemon.claim_archive", "crdt_store.checkpoints"):
        monkeypatch.setattr(f"{module}.read_record", counted)
    taken = await ClaimArchive(store, storage, Syncing()).take([], page)
    refused = {"malformed": 1, "bad_signature": 1, "gap": 1}
    assert taken == {"inserted": 20, "duplicate": 10 + 20, "proofs": 0, "refused": refused}
    assert read == page
    assert len(store.replica) == 30
    store.close()


async def test_others_get_their_turn_between_two_records_of_an_import(tmp_path, alice, bob):
    storage = ClaimStorage(tmp_path / "claims.sqlite")
    store = ClaimStore(storage, alice.key, NOW)
    log = bob.log(256)
    seen = set()

    async def look():
        while True:
            seen.add(len(store.replica))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await ClaimArchive(store, storage, Syncing()).take([], [compact(log[at : at + 64]).raw for at in range(0, 256, 64)])
        nursery.cancel_scope.cancel()
    assert seen & {64, 128, 192}, "a task runs before or after another of its round"
    store.close()
