"""`swarmd reputation export|import|check`: files, exit codes and sentences, against a socket with answers from a table."""

import json
import os
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from crdt_store.claims import Kind, SignedClaim
from crdt_store.memory import MemoryStorage
from crdt_store.own_log import Statement
from crdt_store.storage import ClaimStorage
from crdt_store.store import ClaimStore
from daemon.cli import FAILED, NO_DAEMON, REFUSED, USAGE
from tests.cli.conftest import Result, Server

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
EXPORT, IMPORT = ("POST", "/swarmd/v1/reputation/export"), ("POST", "/swarmd/v1/reputation/import")
Ask = Callable[..., Result]


def said(count: int = 3) -> list[SignedClaim]:
    store = ClaimStore(MemoryStorage(), KEY, 10)
    return [store.record(Statement(store.me, Kind.ROUND_WON), 10) for _ in range(count)]


@pytest.fixture
def archive(server: Server, ask_daemon: Ask, tmp_path: Path) -> Path:
    server.answers[EXPORT] = {"records": [b64encode(entry.raw).decode() for entry in said()], "last": None}
    ran = ask_daemon("reputation", "export", tmp_path / "all.claims")
    assert (ran.code, ran.out) == (0, "")
    assert "3 claims and 0 fork proofs" in ran.err
    return tmp_path / "all.claims"


def test_what_was_exported_is_checked_and_sent_back_as_it_was(server: Server, ask_daemon: Ask, archive: Path) -> None:
    ran = ask_daemon("reputation", "check", archive, "--json")
    assert (ran.code, json.loads(ran.out)["claims"], json.loads(ran.out)["ok"]) == (0, 3, True)
    server.answers[IMPORT] = {"inserted": 1, "duplicate": 1, "proofs": 0, "refused": {"bad_signature": 1}}
    ran = ask_daemon("reputation", "import", archive, "--json")
    shown = json.loads(ran.out)
    assert (ran.code, shown["inserted"], shown["refused"], shown["reasons"]) == (0, 1, 1, {"bad_signature": 1})
    assert server.seen[-1][2]["claims"] == [b64encode(entry.raw).decode() for entry in said()]


def test_a_damaged_archive_is_named_and_what_is_before_is_taken(server: Server, ask_daemon: Ask, archive: Path) -> None:
    raw = bytearray(archive.read_bytes())
    raw[-40] ^= 1
    archive.write_bytes(raw)
    ran = ask_daemon("reputation", "check", archive)
    assert (ran.code, ran.out) == (FAILED, "")
    assert f"byte {len(raw) - 40}: this byte was changed" in ran.err
    server.answers[IMPORT] = {"inserted": 2, "duplicate": 0, "proofs": 0, "refused": {}}
    ran = ask_daemon("reputation", "import", archive, "--json")
    assert (ran.code, json.loads(ran.out)["offset"]) == (FAILED, len(raw) - 40)
    assert len(server.seen[-1][2]["claims"]) == 2


def test_an_export_that_fails_leaves_the_old_file(server: Server, ask_daemon: Ask, archive: Path) -> None:
    before = archive.read_bytes()
    server.answers[EXPORT] = (500, {"error": {"message": "no", "code": "internal"}})
    assert ask_daemon("reputation", "export", archive).code == FAILED
    assert archive.read_bytes() == before
    assert [name for name in os.listdir(archive.parent) if "claims" in name] == ["all.claims"]


def test_bad_use_has_one_sentence_and_its_exit_code(ask_daemon: Ask, swarmd: Ask, server: Server, tmp_path: Path) -> None:
    assert ask_daemon("reputation", "export", "-", "--json").code == USAGE
    assert ask_daemon("reputation", "export").code == USAGE
    assert swarmd("--socket", tmp_path / "none", "reputation", "check").code == NO_DAEMON
    for code, ran in (
        (USAGE, ask_daemon("reputation", "check", tmp_path / "none")),  # 1 would say that it is damaged
        (USAGE, ask_daemon("reputation", "import", tmp_path)),
        (FAILED, ask_daemon("reputation", "export", tmp_path / "no" / "folder")),
        (USAGE, swarmd("--data-dir", tmp_path, "reputation", "check")),
    ):
        assert (ran.code, ran.out, ran.err.count("\n")) == (code, "", 1)
    server.answers[EXPORT] = (403, {"error": {"message": "no", "code": "refused"}})
    assert ask_daemon("reputation", "export", tmp_path / "x").code == REFUSED


def test_the_database_of_a_stopped_daemon(swarmd: Ask, tmp_path: Path) -> None:
    store = ClaimStore(ClaimStorage(tmp_path / "claims.sqlite"), KEY, 10)
    store.record(Statement(store.me, Kind.ROUND_WON), 10)
    ran = swarmd("--data-dir", tmp_path, "reputation", "check")  # in use, by a daemon that does not answer
    assert (ran.code, ran.err.count("\n")) == (FAILED, 1)
    assert "in use" in ran.err
    store.close()
    ran = swarmd("--data-dir", tmp_path, "reputation", "check")
    assert (ran.code, ran.err) == (0, "")
    assert "ok, 1 claims" in ran.out
