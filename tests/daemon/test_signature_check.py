"""The process that checks signatures: the same verdicts as a thread's, whatever becomes of it; and it dies with its parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from crdt_store.claims import NO_HASH, Claim, Kind, SignedClaim, read_claim
from crdt_store.sync_events import Verified, Verify, check
from daemon import signature_check
from daemon.claim_sync import in_thread
from daemon.signature_check import COMMAND, DEPTH, SignatureChecker, Turns
from protocol.wire.codec import decode, encode
from protocol.wire.envelope import Envelope, public_bytes, seal
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId, peer_id_of

PEER = PeerId("peer")
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NAME = peer_id_of(public_bytes(KEY))
NONSENSE = "import os; os.write(1, b'r'); os.read(0, 1); os.write(1, bytes(9)); os.read(0, 1 << 20)"


def chunk(count: int = 64, spoiled: tuple[int, ...] = ()) -> Verify:
    """Claims that were decoded and not checked; the signature of those `spoiled` is of something else."""
    entries: list[SignedClaim] = []
    for seq in range(count):
        previous = NO_HASH if seq == 0 else entries[-1].hash
        claim = Claim(NAME, 1, seq, previous, NAME, Kind.CALL_SERVED, "", seq, NO_HASH, 0)
        raw = seal("claim", encode(claim), KEY)
        if seq in spoiled:
            envelope = decode(Envelope, raw)
            raw = encode(Envelope(envelope.signer, envelope.payload, KEY.sign(b"else")))
        entries.append(read_claim(raw))
    return Verify(PEER, tuple(entries), (), 0.0)


def good(verified: Verified) -> list[bool]:
    return [isinstance(entry, SignedClaim) for entry in verified.claims]


@asynccontextmanager
async def running(monkeypatch: pytest.MonkeyPatch, *command: str) -> AsyncIterator[SignatureChecker]:
    monkeypatch.setattr(signature_check, "PROCESS_FROM", 1)
    checker = SignatureChecker(in_thread, command or COMMAND)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(checker.run)
        yield checker
        nursery.cancel_scope.cancel()


async def by_process(checker: SignatureChecker) -> int:
    """Give chunks until the process took one; its pid."""
    with trio.fail_after(30):
        while not checker.by_process:
            await checker.check(chunk(1))
    assert checker._process is not None
    assert checker._process._child is not None
    return checker._process._child.pid


async def test_its_verdicts_are_those_of_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    some = chunk(spoiled=(3, 40))
    async with running(monkeypatch) as checker:
        await by_process(checker)
        before = checker.by_process
        verified = await checker.check(some)
        assert checker.by_process == before + 64
    expected = check(some)
    assert good(verified) == good(expected) == [seq not in (3, 40) for seq in range(64)]
    assert [str(a) for a in verified.claims if isinstance(a, RemoteError)] == [
        str(b) for b in expected.claims if isinstance(b, RemoteError)
    ]


async def test_chunks_that_it_does_not_answer_are_checked_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    some = chunk(spoiled=(5,))
    results: list[list[bool]] = []
    async with running(monkeypatch) as checker:
        pid = await by_process(checker)
        os.kill(pid, signal.SIGSTOP)  # it holds the chunks and says nothing
        async with trio.open_nursery() as nursery:

            async def one() -> None:
                results.append(good(await checker.check(some)))

            for _ in range(DEPTH):
                nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked(0.05)
            os.kill(pid, signal.SIGKILL)
        assert results == [[seq != 5 for seq in range(64)]] * DEPTH
        assert good(await checker.check(some)) == results[0]


async def test_a_silent_process_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature_check, "ANSWER_SECONDS", 0.2)
    async with running(monkeypatch) as checker:
        os.kill(await by_process(checker), signal.SIGSTOP)
        assert all(good(await checker.check(chunk())))


@pytest.mark.parametrize("program", [NONSENSE, "raise SystemExit(1)"])
async def test_one_that_answers_nonsense_or_nothing_changes_no_verdict(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    async with running(monkeypatch, sys.executable, "-c", program) as checker:
        for _ in range(30):
            assert good(await checker.check(chunk(4, spoiled=(2,)))) == [True, True, False, True]
            await trio.sleep(0.01)
        assert checker.by_process == 0


async def test_without_a_program_to_start_a_thread_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, "/nonexistent") as checker:
        for _ in range(3):
            assert all(good(await checker.check(chunk(4))))


async def test_it_goes_when_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature_check, "IDLE_SECONDS", 1.0)
    async with running(monkeypatch) as checker:
        pid = await by_process(checker)
        with trio.fail_after(20):
            while Path(f"/proc/{pid}").exists():
                await trio.sleep(0.05)
        assert all(good(await checker.check(chunk(4))))


def test_it_dies_with_its_parent() -> None:
    program = """
        import subprocess, sys, time
        from daemon.signature_check import COMMAND
        child = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.read(1)
        print(child.pid, flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
        assert time.monotonic() < deadline, "it outlived its parent"
        time.sleep(0.02)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return "Z"


async def test_one_peers_chunks_are_checked_together_and_peers_take_turns() -> None:
    turns, order = Turns(), []
    other = PeerId("other")

    async def take(peer: PeerId) -> None:
        await turns.take(peer)
        order.append(peer)

    async with trio.open_nursery() as nursery:
        for _ in range(DEPTH):
            await take(PEER)
        nursery.start_soon(take, other)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(take, PEER)
        await trio.testing.wait_all_tasks_blocked()
        turns.give()
        await trio.testing.wait_all_tasks_blocked()
        assert order == [PEER] * DEPTH  # while another waits, nothing more of the first
        turns.give()
        turns.give()
        await trio.testing.wait_all_tasks_blocked()
        assert order == [PEER] * DEPTH + [other]
        turns.give()
    assert order[-1] == PEER
