"""What the claim store costs: merging against the bare signature check, syncing replicas, reading scores, memory, disk.

`python -m bench.claims [--json] [--check]`. Everything in one run on one machine; pycrdt beside it where it is installed
(`make bench-claims` does that). The sync is the real machine over real bytes into a real file, one process, no network.
"""

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from nacl.bindings import crypto_sign_open

from bench import claim_flood
from bench.claim_corpus import ISSUERS, LENGTH, LOGS, NOW, PLACES, Corpus, alone, behind, build
from bench.claim_curves import early, off_at, sampling_limit, settled_at
from bench.claim_line import Exchange, sync_once
from bench.claims_table import as_table, short_of
from bench.command import run
from crdt_store.claims import DOMAIN, SignedClaim, read_claim
from crdt_store.memory import MemoryStorage
from crdt_store.replica import Replica
from crdt_store.storage import ClaimStorage
from crdt_store.store import ClaimStore
from protocol.wire.codec import decode
from protocol.wire.envelope import Envelope, signed_bytes
from protocol.wire.ids import PeerId, public_key_of

DIFFERENCES = (10, 1_000, 10_000)
ROUNDS = 3
"""Of the largest difference; the median counts, and of how late the loop was the worst."""
MET = (0, 50)
"""Of 200 peers, those that the fresh node probed itself."""
ROOT = Path(__file__).parents[1]


Signed = tuple[bytes, bytes, bytes]
"""A key, its signature, and what it signed."""


def signed(corpus: Corpus, count: int) -> list[Signed]:
    """So many claims, taken apart."""
    envelopes = [decode(Envelope, raw) for log in corpus.logs[: count // LENGTH] for raw in log]
    return [(public_key_of(one.signer), one.signature, signed_bytes(DOMAIN, one.payload)) for one in envelopes]


def bare_rate(jobs: list[Signed]) -> float:
    """Signatures a second that libsodium alone checks, one thread on one core: the limit that merging is compared with."""
    ready = [(signature + message, key) for key, signature, message in jobs]
    begun = time.perf_counter()
    for message, key in ready:
        crypto_sign_open(message, key)
    return len(jobs) / (time.perf_counter() - begun)


def openssl_rate(jobs: list[Signed]) -> float:
    """The same by `cryptography`, which was the limit before."""
    ready = [(Ed25519PublicKey.from_public_bytes(key), signature, message) for key, signature, message in jobs]
    begun = time.perf_counter()
    for key, *said in ready:
        key.verify(*said)
    return len(jobs) / (time.perf_counter() - begun)


LOAD = """
import sys, time
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from crdt_store.storage import ClaimStorage
from crdt_store.store import ClaimStore
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before, begun = rss(), time.perf_counter()
store = ClaimStore(ClaimStorage(Path(sys.argv[1])), Ed25519PrivateKey.from_private_bytes(bytes(32)), 1)
print(rss() - before, time.perf_counter() - begun, len(store.replica))
"""


def trusted(raws: list[bytes], store: ClaimStore) -> None:
    entries: list[SignedClaim] = [read_claim(raw) for raw in raws]
    store.insert_opened(entries)
    store.save()


def first_reads(store: ClaimStore, corpus: Corpus) -> list[float]:
    """Seconds of each peer's first read in each skill, when all its evidence is weighed."""
    return [_read(store, name, skill, NOW) for name in corpus.names for skill in PLACES]


def later_reads(store: ClaimStore, corpus: Corpus) -> list[float]:
    """Seconds of reads of random peers and skills within a day."""
    rng = Random(2)
    picks = [(rng.choice(corpus.names), rng.choice(PLACES), NOW + rng.randrange(86_400_000)) for _ in range(3_000)]
    return [_read(store, *pick) for pick in picks]


def _read(store: ClaimStore, name: PeerId, skill: str, now: int) -> float:
    begun = time.perf_counter()
    store.scores.score(name, skill, now)
    return time.perf_counter() - begun


def compacted(folder: Path, full: ClaimStore, key: Ed25519PrivateKey) -> dict[str, float]:
    """What a node keeps whose older claims were put together, all of them but the newest of every newest log."""
    path = folder / "compacted.db"
    store = ClaimStore(ClaimStorage(path), key, NOW)
    trusted([entry.raw for entry in full.replica.claims()], store)
    begun = time.process_time()
    made = sum(store.compact(issuer, len(store.replica)) for issuer in store.replica.issuers())
    took = time.process_time() - begun
    assert store.replica.digest() == full.replica.digest(), "compacting changed what is held"
    size, claims = store.replica.total_bytes, len(store.replica)
    in_checkpoints = [(len(raw), held) for raw, held in records(store.replica) if held > 1]
    store.close()
    loaded = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=True, cwd=ROOT)
    with closing(sqlite3.connect(path)) as db:
        db.execute("VACUUM")
    memory, seconds, _ = loaded.stdout.split()
    return {
        "checkpoint_us": 1e6 * took / made,
        "claim_bytes": sum(size for size, _ in in_checkpoints) / sum(held for _, held in in_checkpoints),
        "mean_bytes": size / claims,
        "memory_bytes": int(memory),
        "disk_bytes": path.stat().st_size,
        "load_seconds": float(seconds),
    }


def records(replica: Replica) -> list[tuple[bytes, int]]:
    logs = [(issuer, head.epoch) for issuer in replica.issuers() for head in replica.heads(issuer).logs]
    return [record for log in logs for record in replica.records(*log)]


def latest(pulls: list[Exchange]) -> dict[str, float]:
    """How late the loop was in the worst of them."""
    return {name: max(getattr(pull, name) for pull in pulls) for name in ("stall_ms", "stall_p99_ms")}


def measure(folder: Path) -> dict[str, Any]:
    corpus = build()
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    path = folder / "full.db"
    full = ClaimStore(ClaimStorage(path), key, NOW)
    trusted([raw for log in corpus.logs for raw in log], full)
    count, size = len(full.replica), full.replica.total_bytes
    full.scores.witnesses.settle()  # as at the start of a daemon
    full.replica.sketch()  # as one that was asked before: what that takes is not the loop's of who asks
    uncached, reads = first_reads(full, corpus), later_reads(full, corpus)
    jobs = signed(corpus, 3_000)
    rates, openssl = [bare_rate(jobs)], [openssl_rate(jobs)]
    syncs: dict[int, Exchange] = {}

    def pull(held: list[bytes], source: Replica, older: bool = True) -> Exchange:
        path = folder / f"{len(rates)}.db"
        store = ClaimStore(ClaimStorage(path), key, NOW)
        trusted(held, store)
        exchange = trio.run(sync_once, store, source, older)
        store.close()
        path.unlink()
        rates.append(bare_rate(jobs))
        openssl.append(openssl_rate(jobs))
        return exchange

    def pulls(held: list[bytes], source: Replica, older: bool = True) -> list[Exchange]:
        return sorted((pull(held, source, older) for _ in range(ROUNDS)), key=lambda exchange: exchange.seconds)

    for difference in DIFFERENCES[:-1]:
        syncs[difference] = pull(behind(corpus, difference), full.replica)
    pulled = pulls(behind(corpus, DIFFERENCES[-1]), full.replica)
    largest = syncs[DIFFERENCES[-1]] = pulled[ROUNDS // 2]
    in_bulk = pulls(behind(corpus, DIFFERENCES[-1]), full.replica, older=False)
    bulk = in_bulk[ROUNDS // 2]
    path_of_fresh = folder / "fresh.db"
    fresh = trio.run(sync_once, ClaimStore(ClaimStorage(path_of_fresh), key, NOW), full.replica)
    curves = {met: early(corpus, full.replica, met) for met in MET}
    limits = sampling_limit(full.replica)
    dense = compacted(folder, full, key)
    full.close()
    loaded = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=True, cwd=ROOT)
    memory, load_seconds, _ = loaded.stdout.split()
    everything = [raw for log in corpus.logs for raw in log]
    source = ClaimStore(MemoryStorage(), key, NOW)
    trusted(everything + alone(corpus), source)
    source.replica.sketch()
    lone = pulls(everything, source.replica, older=False)[ROUNDS // 2]
    bare = median(rates)
    return {
        "claims": count,
        "issuers": ISSUERS,
        "logs": ISSUERS * LOGS,
        "claim_bytes": size // count,
        "verify_per_s": bare,
        "verify_openssl_per_s": median(openssl),
        "cpu_us": 1e6 * largest.cpu / largest.claims,
        "merged_per_s": bulk.claims / bulk.seconds,
        "merge_share": bulk.claims / bulk.seconds / bare,
        "bulk": {"cpu_us": 1e6 * bulk.cpu / bulk.claims, "signatures": bulk.signatures, "bytes": bulk.wire_bytes,
                 **latest(in_bulk)},
        "in_full_per_s": largest.claims / largest.seconds,
        "in_full_share": largest.claims / largest.seconds / bare,
        "in_full_signatures": largest.signatures,
        "alone": {"claims": lone.claims, "signatures": lone.signatures, "merged_per_s": lone.claims / lone.seconds,
                  "merge_share": lone.claims / lone.seconds / bare, "cpu_us": 1e6 * lone.cpu / lone.claims},
        "sampling_limit": limits,
        "score_us": 1e6 * median(reads),
        "score_uncached_us": 1e6 * median(uncached),
        **latest(pulled),
        "sync": {
            str(n): {"claims": s.claims, "missing_bytes": s.missing_bytes, "bytes": s.wire_bytes,
                     "ratio": s.wire_bytes / s.missing_bytes, "seconds": s.seconds}
            for n, s in syncs.items()
        },
        "useful_at": {str(met): settled_at(curve)[0] for met, (curve, _) in curves.items()},
        "useful_at_bytes": {str(met): settled_at(curve)[1] for met, (curve, _) in curves.items()},
        "known_at": {str(met): settled_at(curve)[0] for met, (_, curve) in curves.items()},
        "fresh": {"claims": fresh.claims, "bytes": fresh.wire_bytes, "signatures": fresh.signatures, "seconds": fresh.seconds,
                  "cpu_us": 1e6 * fresh.cpu / fresh.claims, **latest([fresh]),
                  "share": fresh.wire_bytes / size, "merged_per_s": fresh.claims / fresh.seconds,
                  "merge_share": fresh.claims / fresh.seconds / bare,
                  "full_seconds": count * largest.seconds / largest.claims},
        "compacted": dense,
        "off_at": {str(met): {f"{share:.0%}": off_at(curve, share) for share in (0.1, 0.2, 0.3, 0.5, 0.75)}
                   for met, (curve, _) in curves.items()},
        "memory_bytes": int(memory),
        "disk_bytes": path.stat().st_size,
        "load_seconds": float(load_seconds),
        "flood": claim_flood.measure(folder),
        "pycrdt": beside(count, size // count),
    }  # fmt: skip


def beside(count: int, size: int) -> dict[str, Any] | None:
    python = ROOT / ".venv-claims" / "bin" / "python"
    if not python.exists():
        return None
    script = ROOT / "bench" / "peers" / "pycrdt_merge.py"
    command = [str(python), str(script), str(count), str(size), *map(str, DIFFERENCES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr[-300:]}
    return found


if __name__ == "__main__":
    raise SystemExit(run(__doc__, measure, as_table, short_of))
