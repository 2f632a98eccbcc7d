"""Spot-checks between whole peers: who is checked, whose word counts, what the user sees. The engines are fakes that may lie."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from random import Random

import trio.testing

from crdt_store.claims import Kind
from daemon.api.backend import AskRequest, ResultEvent, TokenEvent
from daemon.config import VerifyConfig
from daemon.engine.dialect import check_features
from daemon.engine.interface import Chunk, EngineUnsupported
from daemon.verification import CHECKS, Verification
from protocol import likelihood
from protocol.delta import TokenLogprob, TopToken
from protocol.inference import Begun
from protocol.job import Job, Turn, Usage
from tests.daemon.conftest import FakeEngine, Heard, Peer, Swarm, ask, model, until

Clock = trio.testing.MockClock

WORDS = ("one", " two", " three", " four", " five")
OFFERED = replace(model("tiny"), features=frozenset(("logprobs",)))


def tokens(shift: float) -> tuple[TokenLogprob, ...]:
    """What a model says of WORDS that is `shift` nats off the offered one."""
    return tuple(
        TokenLogprob(word, -0.1 - shift, None, (TopToken(word, -0.1 - shift), TopToken("x", -3.0 - shift))) for word in WORDS
    )


@dataclass
class Weighing(FakeEngine):
    """Says WORDS. `claims_off` is how far its answers' log-probabilities are off, `weighs_off` those of what it is to weigh."""

    claims_off: float = 0.0
    weighs_off: float = 0.0
    refuses_logprobs: bool = False
    mute: bool = False
    weighed: int = 0

    @asynccontextmanager
    async def generate(self, job: Job, begun: Begun | None = None) -> AsyncIterator[AsyncIterator[Chunk]]:
        self.jobs.append(job)
        assert self.model is not None
        check_features(job, self.model.features)
        if job.extras is not None and self.refuses_logprobs:
            raise EngineUnsupported("'logprobs' was not accepted")
        async with aclosing(self._pieces(job.extras is not None and not self.mute)) as pieces:
            yield pieces

    async def _pieces(self, with_logprobs: bool) -> AsyncGenerator[Chunk, None]:
        for token in tokens(self.claims_off):
            yield Chunk(token.token, logprobs=(token,) if with_logprobs else ())
        yield Chunk("", "stop", Usage(1, len(WORDS)))

    async def likelihood(self, turns: Sequence[Turn], text: str, count: int) -> tuple[TokenLogprob, ...]:
        self.weighed += 1
        assert text == "".join(WORDS)
        return tokens(self.weighs_off)[:count]


def off(claims: float = 0.0, weighs: float = 0.0, **more: bool) -> Weighing:
    return Weighing(model=OFFERED, claims_off=claims, weighs_off=weighs, **more)


async def meshed(swarm: Swarm, own: Weighing | None, *others: Weighing, share: float = 0.0) -> tuple[Peer, list[Peer]]:
    """The asker, whose checks run, and the peers that it may ask."""
    transports = swarm.mesh(1 + len(others), connected=True)
    asker = await swarm.start(transports[0], own, no_engine=own is None)
    served = [await swarm.start(transport, engine) for transport, engine in zip(transports[1:], others, strict=True)]
    for peer in served:
        peer.calls.serve(likelihood.METHOD, peer.serving.handle_likelihood)
    config = VerifyConfig(share=share)
    checks = Verification(asker.serving, asker.calls, asker.membership.candidates, asker.reputation.record, config, Random(4))
    asker.asking.verification = checks
    await swarm._nursery.start(checks.run)
    await until(lambda: len(asker.membership.candidates("")) == len(others) + (own is not None))
    return asker, served


def wish(peer: Peer, **changes: object) -> AskRequest:
    return replace(ask(), peer=peer.id, **changes)


async def verified(asker: Peer, peer: Peer) -> dict[str, object]:
    heard = Heard()
    await asker.asking.route(wish(peer, verify=True), heard.emit)
    await until(lambda: not asker.reputation._waiting and not asker.reputation.sync.storing.locked())
    assert heard.result.verification is not None
    assert heard.result.answer == "".join(WORDS)
    return dict(heard.result.verification)


async def claims(asker: Peer) -> list[tuple[Kind, str, int]]:
    await trio.testing.wait_all_tasks_blocked()  # claims are written aside
    kinds = (Kind.OUTPUT_VERIFIED, Kind.OUTPUT_REFUTED)
    found = [entry.claim for entry in asker.store.replica.claims()]
    return [(Kind(one.kind), one.subject, one.value) for one in found if one.kind in kinds]


async def test_our_own_engine_tells_the_honest_from_the_impostor(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, (honest, impostor) = await meshed(swarm, off(), off(), off(claims=0.4))
    good, bad = await verified(asker, honest), await verified(asker, impostor)
    assert (good["verdict"], good["verifier"], good["tokens"], good["deviation_millinats"]) == ("verified", "local", 5, 0.0)
    assert (bad["verdict"], bad["deviation_millinats"]) == ("refuted", 400.0)
    assert set(await claims(asker)) == {(Kind.OUTPUT_VERIFIED, honest.id, 0), (Kind.OUTPUT_REFUTED, impostor.id, 400)}


async def test_a_number_beyond_all_others_is_refuted_and_ends_no_check(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, (liar, honest) = await meshed(swarm, off(), off(claims=1e308), off(), share=1.0)
    assert (await verified(asker, liar))["verdict"] == "refuted"
    await asker.asking.route(wish(liar), Heard().emit)  # in the background, where a fault would end the daemon
    await until(lambda: asker.asking.verification.outcomes["refuted"] == 2)  # type: ignore[union-attr]
    assert (await verified(asker, honest))["verdict"] == "verified"


async def test_one_strangers_word_refutes_nobody_and_two_strangers_do(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, (suspect, *_) = await meshed(swarm, None, off(claims=0.4), off())
    alone = await verified(asker, suspect)
    assert (alone["verdict"], await claims(asker)) == ("undecided", [])


async def test_two_strangers_refute(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, (suspect, *_) = await meshed(swarm, None, off(claims=0.4), off(), off())
    assert (await verified(asker, suspect))["verdict"] == "refuted"
    assert await claims(asker) == [(Kind.OUTPUT_REFUTED, suspect.id, 400)]


async def test_a_slanderer_is_outvoted_by_one_who_agrees(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, (suspect, *_) = await meshed(swarm, None, off(), off(weighs=0.4), off())
    for _ in range(4):
        assert (await verified(asker, suspect))["verdict"] == "verified"
    assert {kind for kind, _, _ in await claims(asker)} == {Kind.OUTPUT_VERIFIED}


async def test_what_cannot_be_checked_is_said_to_be_so(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, (lonely,) = await meshed(swarm, None, off())
    assert (await verified(asker, lonely))[
        "reason"
    ] == "neither this peer nor another reachable one serves the same configuration"
    assert await claims(asker) == []


async def test_a_peer_that_gives_no_log_probabilities_is_unverified(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, (mute,) = await meshed(swarm, off(), off(mute=True))
    assert (await verified(asker, mute))["verdict"] == "unverified"
    assert await claims(asker) == []


async def test_our_own_answer_needs_no_check(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, _ = await meshed(swarm, off(), off())
    assert (await verified(asker, asker))["reason"] == "this peer itself answered"


async def test_a_share_of_answers_is_checked_behind_the_users_back(swarm: Swarm, autojump_clock: Clock) -> None:
    own, other = off(), off()
    asker, (peer,) = await meshed(swarm, own, other, share=0.25)
    events: list[object] = []

    async def emit(event: object) -> None:
        events.append(event)

    for _ in range(200):
        await asker.asking.route(wish(peer), emit)
    await until(lambda: asker.asking.verification.outcomes.total() == own.weighed)  # type: ignore[union-attr]
    assert 30 <= own.weighed <= 70
    assert sum(job.extras is not None for job in other.jobs) == own.weighed
    assert not any(event.logprobs for event in events if isinstance(event, TokenEvent))
    assert not any(event.verification for event in events if isinstance(event, ResultEvent))
    assert len(await claims(asker)) <= 2  # once a minute


async def test_nothing_is_checked_where_that_is_turned_off(swarm: Swarm, autojump_clock: Clock) -> None:
    other = off()
    asker, (peer,) = await meshed(swarm, off(), other)
    for _ in range(20):
        await asker.asking.route(wish(peer), Heard().emit)
    assert not any(job.extras for job in other.jobs)


async def test_an_engine_that_refuses_log_probabilities_is_asked_without_them(swarm: Swarm, autojump_clock: Clock) -> None:
    other = off(refuses_logprobs=True)
    asker, (peer,) = await meshed(swarm, off(), other, share=1.0)
    heard = Heard()
    await asker.asking.route(wish(peer), heard.emit)
    assert heard.result.answer == "".join(WORDS)
    await asker.asking.route(wish(peer), heard.emit)
    assert [job.extras is not None for job in other.jobs] == [True, False, False]


async def test_a_check_takes_its_own_turn_in_the_queue(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, _ = await meshed(swarm, off())
    request = likelihood.LikelihoodRequest(ask().job, OFFERED.config_digest, "".join(WORDS), 5)
    assert len(await asker.serving.likelihood(request, CHECKS)) == 5
