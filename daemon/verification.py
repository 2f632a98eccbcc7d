"""Spot-checks that peers run what they offer: a second opinion of the same config digest on their answers. Decides no routing.

A share of the answers that peers give our user comes with log-probabilities; our own engine, or else another peer, is made to say
the same text. `protocol.output_check` compares, over several answers where one is too short, and verdicts become claims.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import structlog
import trio

from crdt_store.claims import Kind
from crdt_store.own_log import Statement
from daemon.api.backend import AskRequest
from daemon.attempt import PeerAttempt
from daemon.calls import Calls
from daemon.config import VerifyConfig
from daemon.selector import Candidate
from daemon.serving import Serving
from protocol import likelihood, output_check
from protocol.delta import TokenLogprob
from protocol.extras import MAX_TOP_LOGPROBS, Extras
from protocol.job import Job
from protocol.output_check import Evidence
from protocol.wire.codec import encode
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId, short

log = structlog.get_logger("swarmd.verification")

MAX_WAITING = 32
"""Answers that wait for their check; of more, none is checked: a check later is worth as much."""

MAX_SUSPECTS = 4096
"""Pairs of peer and verifier whose evidence is kept, the latest."""

_CALL_SECONDS = 30.0
_QUIET_SECONDS = 60.0
"""A peer is said to be verified once in so long; that it is refuted is said at once."""

LISTENING = Extras(top_logprobs=MAX_TOP_LOGPROBS)
"""What a job asks for beyond text where its answer is to be checked."""

CHECKS = "output checks"
"""Whose turn in our own engine's queue a check takes."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """An answer to be checked, as the peer gave it."""

    candidate: Candidate
    job: Job
    text: str
    tokens: Sequence[TokenLogprob]


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of a check. `verdict`: "verified", "refuted", "undecided" (too few tokens yet) or "unverified"."""

    verdict: str
    reason: str = ""
    verifier: str = ""
    """"local" or a peer id."""
    tokens: int = 0
    deviation_micro: int = 0

    def shown(self) -> dict[str, Any]:
        """Its JSON."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "verifier": self.verifier,
            "tokens": self.tokens,
            "deviation_millinats": round(self.deviation_micro / 1000, 3),
        }


class Verification:
    """`candidates(model)` lists who serves; `record` takes what the checks let us say of peers."""

    def __init__(
        self,
        serving: Serving,
        calls: Calls,
        candidates: Callable[[str], Sequence[Candidate]],
        record: Callable[[Sequence[Statement]], None],
        config: VerifyConfig,
        rng: Random,
    ) -> None:
        self._serving = serving
        self._calls = calls
        self._candidates = candidates
        self._record = record
        self._config = config
        self._rng = rng
        self._send, self._receive = trio.open_memory_channel[Claimed](MAX_WAITING)
        self._evidence: OrderedDict[tuple[PeerId, str, str], Evidence] = OrderedDict()
        self._said: OrderedDict[PeerId, float] = OrderedDict()
        self._without: set[str] = set()
        self.outcomes: Counter[str] = Counter()

    async def run(
        self,
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,  # type: ignore[name-defined]  # libp2p's trio-typing hides it
    ) -> None:
        """Check the answers that were picked, one after the other, until cancelled."""
        task_status.started()
        async for claimed in self._receive:
            await self.check(claimed)

    def wants(self, request: AskRequest, candidate: Candidate) -> bool:
        """Whether an answer of `candidate` is to be checked: a random share, and where the user wants it."""
        if request.job.extras is not None or candidate.path == "local":
            return False
        if request.verify:
            return True
        known = candidate.config_digest not in self._without and "logprobs" in candidate.features
        return known and self._rng.random() < self._config.share

    def refused(self, candidate: Candidate) -> None:
        """The engine of `candidate` gives no log-probabilities, whatever its offer says: it is not asked for them again."""
        if len(self._without) < MAX_SUSPECTS:
            self._without.add(candidate.config_digest)

    def answered(self, attempt: PeerAttempt, text: str) -> None:
        """An answer that was picked is complete: it is checked when those before it are."""
        try:
            self._send.send_nowait(claimed_by(attempt, text))
        except trio.WouldBlock:
            self.outcomes["skipped"] += 1

    async def check(self, claimed: Claimed) -> Checked:
        """Compare an answer with what a verifier says of it, and record what that decides; raises nothing of a peer's."""
        found = await self._check(claimed)
        self.outcomes[found.verdict] += 1
        log.debug("output checked", peer=short(claimed.candidate.peer), **found.shown())
        return found

    async def _check(self, claimed: Claimed) -> Checked:
        said = likelihood.weighed(claimed.tokens)
        text, kept = output_check.text_of(said[: likelihood.MAX_WEIGHED_TOKENS])
        spelled = b"".join(token.token for token in said).decode(errors="replace")
        if not text or spelled.strip() != claimed.text.strip():
            return Checked("unverified", "the peer's log-probabilities do not spell its answer")
        last = Checked("unverified", "neither this peer nor another reachable one serves the same configuration")
        refuted: list[Checked] = []
        for verifier in self._verifiers(claimed.candidate):
            try:
                scored = await self._ask(verifier, claimed, text, len(kept))
            except RemoteError as error:
                last = Checked("unverified", f"the verifier could not say: {error.message}", verifier or "local")
                continue
            last = self._compare(claimed, kept, scored, verifier)
            if last.verdict != "refuted":
                break
            refuted.append(last)
            if verifier is None or len(refuted) > 1:
                break
        return self._decide(claimed, last, refuted)

    def _decide(self, claimed: Claimed, last: Checked, refuted: Sequence[Checked]) -> Checked:
        """One stranger's word refutes nobody: our own engine's does, or that of two."""
        peer = claimed.candidate.peer
        if last.verdict == "refuted" and last.verifier != "local" and len(refuted) < 2:
            return Checked("undecided", "one other peer alone says so", last.verifier, last.tokens, last.deviation_micro)
        if last.verdict in ("verified", "refuted"):
            self._forget(peer)
            if last.verdict == "refuted" or self._may_say(peer):
                kind = Kind.OUTPUT_VERIFIED if last.verdict == "verified" else Kind.OUTPUT_REFUTED
                self._record([Statement(peer, kind, value=-(-last.deviation_micro // 1000))])
        if last.verdict == "refuted":
            deviation = round(last.deviation_micro / 1000)
            log.warning("a peer does not run what it offers", peer=peer, model=claimed.candidate.model, millinats=deviation)
        return last

    def _verifiers(self, suspect: Candidate) -> list[PeerId | None]:
        """Who could say, None for our own engine: that alone if it can, else three others of the same config digest."""
        engine = self._serving.engine
        if engine is not None and engine.model is not None and engine.model.config_digest == suspect.config_digest:
            return [None]
        same = [one.peer for one in self._candidates(suspect.model) if one.config_digest == suspect.config_digest]
        others = [peer for peer in same if peer != suspect.peer]
        self._rng.shuffle(others)
        return [*others[:3]]

    async def _ask(self, verifier: PeerId | None, claimed: Claimed, text: str, tokens: int) -> tuple[likelihood.Weighed, ...]:
        plain = Job(claimed.job.turns, model=claimed.candidate.model)
        request = likelihood.LikelihoodRequest(plain, claimed.candidate.config_digest, text, tokens)
        if verifier is None:
            return await self._serving.likelihood(request, CHECKS)
        body = await self._calls.unary(verifier, likelihood.METHOD, encode(request), timeout=_CALL_SECONDS)
        return likelihood.read_reply(body)

    def _compare(
        self,
        claimed: Claimed,
        kept: Sequence[likelihood.Weighed],
        scored: Sequence[likelihood.Weighed],
        verifier: PeerId | None,
    ) -> Checked:
        greedy = claimed.job.sampling.temperature_milli == 0
        found = output_check.deviations(kept, scored, greedy=greedy)
        digest = claimed.candidate.config_digest
        tolerance = output_check.tolerance_of(digest, digest, {}, self._config.tolerance_millinats * 1000)
        key = (claimed.candidate.peer, digest, verifier or "local")
        evidence = output_check.told(self._evidence.pop(key, Evidence()), found, tolerance)
        self._evidence[key] = evidence
        while len(self._evidence) > MAX_SUSPECTS:
            self._evidence.popitem(last=False)
        verdict = evidence.verdict or "undecided"
        reason = "" if evidence.verdict else f"{evidence.tokens} tokens are too few to tell"
        return Checked(verdict, reason, key[2], evidence.tokens, evidence.mean_micro)

    def _forget(self, peer: PeerId) -> None:
        """A test that was decided begins anew."""
        for key in [key for key in self._evidence if key[0] == peer]:
            del self._evidence[key]

    def _may_say(self, peer: PeerId) -> bool:
        now = trio.current_time()
        if now - self._said.get(peer, -_QUIET_SECONDS) < _QUIET_SECONDS:
            return False
        self._said[peer] = now
        self._said.move_to_end(peer)
        while len(self._said) > MAX_SUSPECTS:
            self._said.popitem(last=False)
        return True


def claimed_by(attempt: PeerAttempt, text: str) -> Claimed:
    """What an attempt that was listened to claims; without log-probabilities where the peer gave none."""
    return Claimed(attempt.choice.candidate, attempt.job, text, tuple(attempt.heard or ()))
