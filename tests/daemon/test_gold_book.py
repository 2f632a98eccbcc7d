"""What gold rounds showed outlives a restart, is bounded, and a bad file costs nothing but itself."""

from pathlib import Path

import pytest

from daemon.gold_book import MAX_ROUNDS, GoldBook, GoldRound
from daemon.paths import write_durably
from protocol.round.blocks import Errors


def gold_round(right: bool = True, mark: str = "..") -> GoldRound:
    return GoldRound({"fuse": ((2000,), right)}, Errors(("p", "q"), mark))


def test_blocks_and_gains_outlive_a_restart(tmp_path: Path) -> None:
    book = GoldBook(tmp_path / "gold.json")
    assert (book.gain_milli("fuse"), book.blocks()) == (1000, ())
    for place in range(60):
        book.note(gold_round(place % 10 < 6, "aa" if place % 3 == 0 else ".."))
    assert book.blocks() == (), "it is learnt from in a thread"
    book.learn()
    book.save()
    assert book.gain_milli("fuse") < 700, "6 of 10 right where 0.88 was said"
    assert book.gain_milli("rank") == 1400
    assert book.blocks() == (frozenset("pq"),)
    again = GoldBook(tmp_path / "gold.json")
    assert (again.gain_milli("fuse"), again.blocks()) == (book.gain_milli("fuse"), book.blocks())


def test_it_is_bounded_and_forgets_the_oldest(tmp_path: Path) -> None:
    book = GoldBook(tmp_path / "gold.json")
    for _ in range(60):
        book.note(gold_round(mark="aa"))
    for _ in range(MAX_ROUNDS):
        book.note(gold_round())
    book.learn()
    book.save()
    assert book.blocks() == ()
    assert (tmp_path / "gold.json").stat().st_size < 1 << 20


UNEVEN = b'[{"trials":{"fuse":[[2000],true]},"errors":{"members":["p","q"],"answers":"...","pairs":[]}}]'
NEGATIVE = b'[{"trials":{"fuse":[[-2000],true]},"errors":{"members":["p"],"answers":".","pairs":[]}}]'


@pytest.mark.parametrize("content", [b"", b"{", b'[{"trials": 1}]', b"\xff" * 10, UNEVEN, NEGATIVE])
def test_a_bad_file_is_left_until_there_is_something_new(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "gold.json"
    path.write_bytes(content)
    book = GoldBook(path)
    book.save()
    assert path.read_bytes() == content
    book.note(gold_round())
    book.save()
    assert b"fuse" in path.read_bytes()


def test_what_is_noted_during_a_write_is_written_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = GoldBook(tmp_path / "gold.json")

    def slow(path: Path, content: bytes) -> None:
        write_durably(path, content)
        if content.count(b"fuse") == 1:
            book.note(gold_round())

    monkeypatch.setattr("daemon.gold_book.write_durably", slow)
    book.note(gold_round())
    book.save()
    book.save()
    assert (tmp_path / "gold.json").read_bytes().count(b"fuse") == 2


def test_a_full_disk_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    book = GoldBook(tmp_path / "gold.json")
    book.note(gold_round())
    with monkeypatch.context() as patched:
        patched.setattr("daemon.gold_book.write_durably", full)
        book.save()
    assert not (tmp_path / "gold.json").exists()
    book.save()
    assert (tmp_path / "gold.json").exists()
