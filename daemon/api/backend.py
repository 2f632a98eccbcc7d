"""What the local API asks of the node, and the events an `ask` yields. Holds types alone; the node implements them."""

from array import array
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from protocol.delta import CallDelta, TokenLogprob
from protocol.embedding import EmbedJob
from protocol.job import FinishReason, Job, Usage

Json = Mapping[str, Any]
"""A JSON object as the control API prints it; docs/api.md lists the fields."""

Strategy = Literal["route", "majority", "rank", "auto"]


@dataclass(frozen=True, slots=True)
class PeerWish:
    """Who may answer: of `only` (None: anyone) less `ignore`, within `max_rtt` seconds (a path not measured is none of them).

    `sort` puts the nearest or the least busy first, None the soonest. `min_score_milli`: the least share of right answers, in
    thousandths, that the claims we hold let us expect in the question's topic.
    """

    only: frozenset[str] | None = None
    ignore: frozenset[str] = frozenset()
    sort: Literal["latency", "load"] | None = None
    max_rtt: float | None = None
    min_score_milli: int | None = None


ASK_SECONDS = 3600.0
"""Of a whole question, whose first word and whose pauses have bounds of their own (daemon/patience.py): 4,096 tokens at three a
second, as a laptop may say them, take 23 minutes."""


@dataclass(frozen=True, slots=True)
class AskRequest:
    """One question of the local user. `timeout_s` bounds the whole of it, in seconds."""

    job: Job
    strategy: Strategy = "route"
    committee: int | None = None
    peer: str | None = None
    timeout_s: float = ASK_SECONDS
    wish: PeerWish | None = None
    verify: bool = False
    """Have another engine of the same configuration say whether the answer is that model's (strategy "route" alone)."""
    rationale: bool = False
    """Let a round's judges say in words what decided them (not strategy "route")."""
    is_probe: bool = False
    """Our own question, whose answer is known: no peer can tell."""
    plant: Callable[[str], str] | None = None
    """In a gold round: what our own member says in place of what its engine said."""
    id: str = ""
    """By which `GET asks/ID` finds it afterwards; "" lets the node choose."""


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts of the local user to be turned into vectors; the other fields as in AskRequest."""

    job: EmbedJob
    timeout_s: float = 120.0
    wish: PeerWish | None = None
    id: str = ""


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """Probes to make at once: `count` questions to `peer` (None: to each), of `skill` (None: all), and `rounds` of gold."""

    peer: str | None = None
    skill: str | None = None
    count: int = 10
    rounds: int = 0


@dataclass(frozen=True, slots=True)
class BegunEvent:
    """The first token is about to come (strategy "route" alone): from whom, and as which attempt, counted from 1."""

    peer_id: str
    path: str
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A piece as it is generated (strategy "route" alone; a round yields its answer whole)."""

    text: str
    tool_calls: tuple[CallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class EstimateEvent:
    """What a round is expected to cost and to be worth, beside one peer, before it is asked. `strategy` is what will be done.

    `round` and `route` have `answers` (cost, in answers of one peer), `right_milli` (their share) and `per_right` (what
    a right answer costs where a wrong one costs its user 20 answers). `known`: whether gold says anything of the peers.
    """

    strategy: Strategy
    topic: str
    arm: str
    known: bool
    round: Json
    route: Json
    why: str


@dataclass(frozen=True, slots=True)
class MemberProgress:
    """One committee member in the live table; `state` is one word: drawn, answering, sealed, revealed, judged or gone."""

    peer_id: str
    model: str
    state: str


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """Where a round stands: its phase and how many of `of` members have sealed, revealed and judged."""

    phase: str
    members: tuple[MemberProgress, ...]
    sealed: int
    revealed: int
    judged: int
    of: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One peer that was tried and what came of it: "ok", "continued" (it took over at `at_chars`), "slower" or an error code.

    `at_chars`: characters of the answer that others had given when it was asked for the rest, None where it was asked for all.
    """

    peer_id: str
    outcome: str
    at_chars: int | None = None

    def shown(self) -> dict[str, Any]:
        """Its JSON."""
        shape: dict[str, Any] = {"peer_id": self.peer_id, "outcome": self.outcome}
        return shape if self.at_chars is None else shape | {"at_chars": self.at_chars}


@dataclass(frozen=True, slots=True)
class ResultEvent:
    """How an ask ended well. `round` is the shape of GET /swarmd/v1/rounds/{id}, None for strategy "route".

    `continued`: the lengths, in characters, that the answer had each time another peer took it over. `why` explains the choice.
    """

    answer: str
    peer_id: str
    model: str
    strategy: Strategy
    finish_reason: FinishReason = "stop"
    usage: Usage = field(default_factory=Usage)
    attempts: tuple[Attempt, ...] = ()
    path: str = "unknown"
    elapsed_s: float = 0.0
    round: Json | None = None
    continued: tuple[int, ...] = ()
    why: str = ""
    engine_s: float | None = None
    """Seconds of `elapsed_s` that the engine says were its own; None where unknown or where more than one peer was tried."""
    ask_id: str = ""
    verification: Json | None = None
    """What came of the check that the ask wanted; None where it wanted none."""

    @property
    def overhead_s(self) -> float | None:
        """Seconds that all but the engine took; None where that is unknown."""
        return None if self.engine_s is None else max(0.0, self.elapsed_s - self.engine_s)


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """One vector a text, in their order, all by one peer."""

    vectors: "tuple[array[float], ...]"
    prompt_tokens: int
    peer_id: str
    model: str
    path: str
    config_digest: str
    attempts: tuple[Attempt, ...]
    elapsed_s: float
    ask_id: str = ""


AskEvent = BegunEvent | TokenEvent | EstimateEvent | ProgressEvent | ResultEvent


Emit = Callable[[AskEvent], Awaitable[None]]
"""Takes one event of an ask, and waits where nobody reads it."""


class Backend(Protocol):
    """The node behind the API. Every method raises RemoteError with a stable code where it cannot answer."""

    async def status(self) -> Json: ...

    async def peers(self) -> Json: ...

    async def models(self) -> Json: ...

    async def rounds(self) -> Json: ...

    async def round(self, round_id: str) -> Json: ...

    async def verify(self, round_id: str) -> Json: ...

    async def asks(self) -> Json: ...

    async def ask_note(self, ask_id: str) -> Json: ...

    async def why(self, named: str) -> Json:
        """The ask or the round of that id, or the newest of both for "last", with its `kind`."""

    async def probe(self, request: ProbeRequest) -> Json: ...

    async def config(self) -> Json: ...

    async def netcheck(self) -> Json:
        """What is known of our place in the network."""

    async def lookup(self, what: str) -> Json:
        """Look in the DHT for a peer's offer, a model's peers or a key, and how that went; raises RemoteError."""

    async def ping(self, peer_id: str) -> Json:
        """One round trip to a peer and the path it took; raises RemoteError."""

    async def reputation(self, peer_id: str | None) -> Json: ...

    async def stop(self) -> None:
        """Begin to drain; returns at once."""

    def readiness(self) -> tuple[bool, tuple[str, ...]]:
        """Whether the mesh is joined and a model answers, and the reasons why not."""

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Turn texts into vectors."""

    async def ask(self, request: AskRequest, emit: Emit) -> None:
        """Answer a question by what `emit` is told; the last event is a ResultEvent. Cancelling this ends the work everywhere.

        Whoever is slow to take an event slows the answer down.
        """
