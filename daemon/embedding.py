"""Texts into vectors by one chosen peer, ourselves included; where it fails the next is asked for all of them, at most three.

All vectors of one answer come from one peer: those of two builds of a model need not be alike.
"""

from array import array
from collections.abc import AsyncIterator
from dataclasses import replace

import structlog
import trio

from daemon.api.backend import Attempt, EmbedRequest, EmbedResult
from daemon.ask_notes import AskNote, AttemptNote
from daemon.asking import MAX_ATTEMPTS, Asking
from daemon.attempt import FAULTS, Served
from daemon.engine.interface import Vectors
from daemon.peer_wish import refusal, sifted, wished_order
from daemon.selector import Candidate, Choice
from dht.offers import EMBEDDINGS
from protocol.embedding import METHOD, EmbedJob, read_embedded, read_vector
from protocol.skills import GENERAL
from protocol.wire.codec import encode
from protocol.wire.errors import Code, RemoteError, malformed
from protocol.wire.ids import short

log = structlog.get_logger("swarmd.embedding")


class Embedding:
    """Routes requests for vectors with what `asking` knows of peers."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Vectors for `request`; raises RemoteError where no peer could, and (deadline) after its `timeout_s`."""
        asking, started = self._asking, trio.current_time()
        with asking.noted(request.id, request.job.model, "embeddings") as note:
            with trio.move_on_after(request.timeout_s):
                return replace(await self._first_of(self._choices(request, note), request.job, note), ask_id=note.ask_id)
            raise RemoteError(Code.DEADLINE, f"no vectors within {trio.current_time() - started:.0f} s")

    def _choices(self, request: EmbedRequest, note: AskNote) -> list[Choice]:
        model = request.job.model
        serving = self._asking.scored(self._asking.candidates(model), request.wish, lambda: GENERAL)
        if not serving:
            if (later := self._asking.resting(model, None)) is not None:
                raise later
            raise RemoteError(Code.NOT_FOUND, f"no reachable peer serves {model}; swarmd models lists what the mesh offers")
        able, unable = sifted(serving, lambda one: "" if EMBEDDINGS in one.features else "its engine gives no embeddings")
        allowed, ruled_out = sifted(able, lambda one: refusal(one, request.wish))
        choices = wished_order(self._asking.ranked(allowed), request.wish)
        note.weigh(choices, [*unable, *ruled_out])
        if not able:
            raise RemoteError(Code.UNSUPPORTED, f"no engine that serves {model} gives embeddings")
        if not allowed:
            raise RemoteError(Code.NOT_FOUND, f"none of the {len(able)} peers that could answer is one that 'peer' allows")
        return choices[:MAX_ATTEMPTS]

    async def _first_of(self, choices: list[Choice], job: EmbedJob, note: AskNote) -> EmbedResult:
        attempts: list[Attempt] = []
        started = trio.current_time()
        for place, choice in enumerate(choices):
            candidate = choice.candidate
            reason = "next" if place else "best"
            noted = AttemptNote(candidate.peer, reason, trio.current_time() - started, choice.wait)
            note.attempts.append(noted)
            try:
                made = await self._by(candidate, job)
            except RemoteError as error:
                noted.outcome, noted.message = str(error.code), error.message
                attempts.append(Attempt(candidate.peer, noted.outcome))
                if candidate.path != "local" and error.code in FAULTS:
                    self._asking.observe(Served(candidate.peer, False, None))
                if place + 1 == len(choices) or error.code is Code.OVERSIZED:
                    raise
                log.info("trying the next peer", peer=short(candidate.peer), code=noted.outcome, reason=error.message)
                continue
            noted.outcome, note.peer_id = "ok", candidate.peer
            attempts.append(Attempt(candidate.peer, "ok"))
            if candidate.path != "local":
                self._asking.observe(Served(candidate.peer, True, None))
            path = "local" if candidate.path == "local" else self._asking.calls.path_kind(candidate.peer) or candidate.path
            return EmbedResult(
                made.vectors, made.prompt_tokens, candidate.peer, candidate.model, path,
                candidate.config_digest, tuple(attempts), trio.current_time() - started,
            )  # fmt: skip
        raise RemoteError(Code.INTERNAL, "there was nobody to ask")

    async def _by(self, candidate: Candidate, job: EmbedJob) -> Vectors:
        if candidate.path == "local":
            return await self._asking.serving.embed(job)
        patience = self._asking.patience
        vectors: list[array[float]] = []
        async with self._asking.calls.stream(candidate.peer, METHOD, encode(job), timeout=patience.call) as stream:
            items = aiter(stream)
            while (raw := await _next(items, patience.gap if vectors else patience.first_token)) is not None:
                if len(vectors) == len(job.texts):
                    raise malformed("the peer sent more vectors than there are texts")
                vectors.append(read_vector(raw, len(vectors[0]) if vectors else None))
            if len(vectors) < len(job.texts):
                raise malformed(f"the peer sent {len(vectors)} vectors for {len(job.texts)} texts")
            return Vectors(tuple(vectors), read_embedded(stream.result).prompt_tokens)


async def _next(items: AsyncIterator[bytes], limit: float) -> bytes | None:
    with trio.move_on_after(limit):
        return await anext(items, None)
    raise RemoteError(Code.DEADLINE, f"the peer sent nothing for {limit:g} s")
