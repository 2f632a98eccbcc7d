"""Kill -9 at random moments under load, and a full disk: nothing acknowledged is lost, nothing forks, no file is corrupt.

    python tests/live/crash_claims.py [--kills 500] [--seed 1]

A victim writes claims of its own, singly and in groups, and copies of another's, which it compacts, and says on a pipe what it
was told is durable; the parent kills it at a moment drawn by the seed, opens the file, and checks it against all that was
acknowledged. The full disk is a tmpfs of 1 MiB in a mount namespace of its own (needs root; else it says that it was skipped).
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from crdt_store.checkpoints import claims_of, read_record
from crdt_store.claims import NO_HASH, Claim, Kind, sign_claim
from crdt_store.own_log import Statement
from crdt_store.replica import Replica
from crdt_store.storage import ClaimStorage
from crdt_store.store import ClaimStore, StorageError
from protocol.wire.envelope import public_bytes
from protocol.wire.ids import peer_id_of

KEY = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(bytes([2]) * 32)
NOW = 1_700_000_000_000


def load(path: Path, writer: int, number: int) -> None:
    """Write until killed; each line on the pipe is a claim that `record` or `commit` gave back."""
    store = ClaimStore(ClaimStorage(path), KEY, NOW + number)
    other, previous, seq = peer_id_of(public_bytes(OTHER)), NO_HASH, 0
    while True:
        entries = [store.record(Statement(other, Kind.CALL_SERVED, value=seq), NOW)]
        group = store.draft([Statement(other, Kind.PROBE_PASSED, "math", 1)] * 3, NOW)
        if group[0].claim.seq:  # the first of a new epoch comes alone as well
            store.write_own(group)
            store.commit(group)
            entries += group
        os.write(writer, b"".join(entry.raw.hex().encode() + b"\n" for entry in entries))
        if seq < 900:
            claim = Claim(other, NOW + number, seq, previous, store.me, Kind.CALL_SERVED, "", 0, NO_HASH, NOW)
            copy = sign_claim(claim, OTHER)
            store.insert_many([copy.raw])
            previous, seq = copy.hash, seq + 1
        if seq % 8 == 0:
            store.compact(other, 10, keep=0)
            store.save()


def kill_one(path: Path, number: int, rng: Random) -> list[bytes]:
    """One victim; the claims that it acknowledged before it died."""
    reader, writer = os.pipe()
    victim = os.fork()
    if victim == 0:
        os.close(reader)
        try:
            load(path, writer, number)
        finally:
            os._exit(1)
    os.close(writer)
    heard = os.read(reader, 1 << 16) if rng.random() < 0.8 else b""  # else even while it opens the file
    time.sleep(rng.uniform(0, 0.03))
    os.kill(victim, signal.SIGKILL)
    while rest := os.read(reader, 1 << 16):
        heard += rest
    os.waitpid(victim, 0)
    os.close(reader)
    return [bytes.fromhex(line.decode()) for line in heard.rpartition(b"\n")[0].split()]


def check(path: Path, acknowledged: set[bytes], witness: Replica, fresh: list[bytes]) -> tuple[int, int, int]:
    """Lost claims, self-forks, corrupt files."""
    try:
        storage = ClaimStorage(path)
    except StorageError as error:
        print(error)
        return 0, 0, 1
    with closing(storage):
        stored = storage.load()
    held = set(stored.claims)
    copies = Replica()
    for raw in stored.claims:
        copies.insert(raw, trusted=True)
    holes = sum(claims_of(read_record(raw)) for raw in stored.claims) - len(copies)
    me = peer_id_of(public_bytes(KEY))
    for raw in [*fresh, *(raw for raw in stored.claims if read_record(raw).claim.issuer == me)]:
        witness.insert(raw, trusted=True)
    return len(acknowledged - held), len(witness.forks()), int(stored.damaged > 0 or holes != 0)


def kills(count: int, seed: int) -> int:
    rng = Random(seed)
    acknowledged: set[bytes] = set()
    witness = Replica()
    lost = forks = corrupt = 0
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "claims.db"
        for number in range(count):
            if number % 50 == 0 and number:  # a file of fifty lives, then the next: load times stay those of a daemon
                path, acknowledged = Path(folder) / f"claims-{number}.db", set()
                witness = Replica()
            fresh = kill_one(path, number, rng)
            acknowledged |= set(fresh)
            found = check(path, acknowledged, witness, fresh)
            lost, forks, corrupt = lost + found[0], max(forks, found[1]), corrupt + found[2]
            if any(found):
                print(f"kill {number} of seed {seed}: {found[0]} lost, {found[1]} forks, {found[2]} corrupt")
    print(
        f"{count} kills in {time.monotonic() - begun:.0f} s: {lost} acknowledged claims lost, {forks} self-forks, "
        f"{corrupt} corrupt databases"
    )
    return lost + forks + corrupt


def fill(folder: Path) -> int:
    """Inside the namespace: fill a disk of 1 MiB, make room, go on, and look at what is left."""
    path = folder / "claims.db"
    store = ClaimStore(ClaimStorage(path), KEY, NOW)
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(200 << 10))
    said: list[bytes] = []
    refused = 0
    for _ in range(4_000):
        try:
            said.append(store.record(Statement(store.me, Kind.CALL_SERVED), NOW).raw)
        except StorageError as error:
            refused, sentence = refused + 1, str(error)
            if refused >= 5:
                break
    ballast.unlink()
    begun = time.monotonic()
    again_refused = 0
    wanted = len(said) + 50
    while len(said) < wanted and again_refused < 20:
        try:
            said.append(store.record(Statement(store.me, Kind.CALL_SERVED), NOW).raw)
        except StorageError:
            again_refused += 1
    recovered = time.monotonic() - begun
    store.close()
    again = ClaimStorage(path).load()
    witness = Replica()
    for raw in again.claims:
        witness.insert(raw, trusted=True)
    lost, forks = len(set(said) - set(again.claims)), len(witness.forks())
    print(
        f"full disk: {refused} claims refused with one sentence ({sentence}); {len(said)} acknowledged, {lost} lost, "
        f"{forks} self-forks, {again.damaged} damaged;"
        f" wrote 50 more in {recovered:.1f} s once there was room ({again_refused} refused)"
    )
    return lost + forks + again.damaged + (not refused) + (len(said) < wanted)


def full_disk() -> int:
    with tempfile.TemporaryDirectory() as folder:
        script = f"mount -t tmpfs -o size=1m tmpfs {folder} && exec {sys.executable} {__file__} --fill {folder}"
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = ["unshare", "--mount", "sh", "-c", script]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode and ("unshare" in done.stderr or "mount" in done.stderr):
        print(f"full disk: skipped, no mount namespace here ({done.stderr.strip()[:120]})")
        return 0
    print(done.stdout.strip() or done.stderr.strip())
    return done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fill is not None:
        return int(fill(arguments.fill) > 0)
    return int(full_disk() + kills(arguments.kills, arguments.seed) > 0)


if __name__ == "__main__":
    sys.exit(main())
