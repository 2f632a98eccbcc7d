"""A data folder put back from a backup, with real processes: the key signs nothing twice, and its peer keeps believing it."""

import shutil
from typing import Any

import pytest

from tests.live.conftest import Daemon, Starter, alive, until

pytestmark = [pytest.mark.live, pytest.mark.slow]


def said(daemon: Daemon, issuer: str) -> dict[tuple[int, int], str]:
    """What a daemon holds of an issuer: claim hashes by epoch and seq."""
    rows: list[dict[str, Any]] = daemon.client.reputation()["claims_list"]
    return {(row["epoch"], row["seq"]): row["hash"] for row in rows if row["issuer"] == issuer}


def hashes(*daemons: Daemon) -> set[str]:
    return {daemon.client.reputation()["replica_hash"] for daemon in daemons}


def test_a_restored_backup_opens_a_new_epoch_and_forks_nothing(starter: Starter) -> None:
    witness = starter("w", "--model", "tiny-all")
    speaker = starter("s", "--join", witness.address)
    me = speaker.peer_id

    def speak(daemon: Daemon, least: int) -> None:
        until(lambda: alive(daemon))
        daemon.client.probe(witness.peer_id, count=2)
        until(lambda: len(said(witness, me)) >= least and len(hashes(daemon, witness)) == 1)

    speak(speaker, 1)
    early = said(witness, me)
    backup = speaker.folder / "backup"
    shutil.copytree(speaker.folder / "data", backup, ignore=shutil.ignore_patterns("*.lock", "*.sock"))
    speak(speaker, len(early) + 1)
    before = said(witness, me)
    assert {epoch for epoch, _ in before} == {epoch for epoch, _ in early}, "the tail that the backup lacks is of the same epoch"
    speaker.child.kill()
    speaker.child.wait()
    shutil.rmtree(speaker.folder / "data")
    backup.rename(speaker.folder / "data")

    restored = starter("s", "--join", witness.address)
    assert restored.peer_id == me
    speak(restored, len(before) + 1)
    after = said(witness, me)
    assert {place: after.get(place) for place in before} == before, "what it had signed stands, the lost tail too"
    opened = {epoch for epoch, _ in after} - {epoch for epoch, _ in before}
    assert opened, "a new epoch"
    assert min(opened) > max(epoch for epoch, _ in before)
    own = said(restored, me)  # read later, and it goes on signing: at least what its peer held before
    assert {place: own.get(place) for place in after} == after, "and its peer gave the tail back"
    for daemon in (restored, witness):
        assert daemon.client.reputation()["forks"] == []
