"""A real process, killed in mid-append: what it had acknowledged is there, and its log never forks."""

import subprocess
import sys

import pytest

from crdt_store.claims import read_claim
from crdt_store.outcomes import Inserted
from crdt_store.replica import Replica
from crdt_store.storage import ClaimStorage
from crdt_store.store import ClaimStore

KILLS = 20

# One interpreter forks the victims, which saves twenty imports. A victim appends for ever and writes each claim to the pipe
# once it was returned; the parent kills it after some acknowledgements, a different number each time, wherever it is then.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from crdt_store.claims import Kind
from crdt_store.own_log import Statement
from crdt_store.storage import ClaimStorage
from crdt_store.store import ClaimStore

path, kills = Path(sys.argv[1]), int(sys.argv[2])
key = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
for round in range(kills):
    reader, writer = os.pipe()
    victim = os.fork()
    if victim == 0:
        os.close(reader)
        store = ClaimStore(ClaimStorage(path), key, 1_700_000_000_000)
        while True:
            entry = store.record(Statement(store.me, Kind.CALL_SERVED), 1_700_000_000_000)
            os.write(writer, entry.raw.hex().encode() + b"\\n")
    os.close(writer)
    acknowledged = b""
    while acknowledged.count(b"\\n") < 1 + round % 7 or (round % 3 == 0 and len(acknowledged) % 2):
        acknowledged += os.read(reader, 500 + 97 * round)
    os.kill(victim, signal.SIGKILL)
    while rest := os.read(reader, 65536):
        acknowledged += rest
    os.waitpid(victim, 0)
    os.close(reader)
    sys.stdout.write(acknowledged.decode().rpartition("\\n")[0] + "\\n")
"""


@pytest.mark.live
@pytest.mark.slow
def test_killed_twenty_times_it_loses_nothing_and_never_forks(tmp_path, alice):
    path = tmp_path / "claims.db"
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(KILLS)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    acknowledged = [bytes.fromhex(line) for line in run.stdout.split()]
    assert len({read_claim(raw).claim.epoch for raw in acknowledged}) == KILLS
    store = ClaimStore(ClaimStorage(path), alice.key, 1_700_000_000_000)
    held = [entry.raw for entry in store.replica.claims()]
    assert store.damaged == 0
    assert set(acknowledged) <= set(held)
    witness = Replica()
    assert all(
        isinstance(witness.insert(raw), Inserted) for raw in [*acknowledged, *(r for r in held if r not in set(acknowledged))]
    )
    assert witness.digest() == store.replica.digest()
    assert store.epoch > max(read_claim(raw).claim.epoch for raw in held)
    store.close()
