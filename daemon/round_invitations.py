"""Whether we sit in a round that somebody asks us into. Builds the member's machine; starts nothing."""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from daemon.round_role import Role
from daemon.round_table import RoundTable
from daemon.serving import Serving
from protocol.round.judging import Style
from protocol.round.member import MemberMachine
from protocol.round.messages import Header, Held
from protocol.wire.envelope import public_bytes
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import PeerId, peer_id_of

MAX_OPEN = 32
"""Rounds we sit in at once; an invitation beyond that is declined."""

MAX_OPEN_OF_PEER = 8
"""Of one requester, so that one peer cannot have us in nothing but its rounds."""


class Invitations:
    """Answers headers. `entropy` gives secret bytes for nonces and salts."""

    def __init__(
        self,
        key: Ed25519PrivateKey,
        table: RoundTable,
        serving: Serving,
        entropy: Callable[[int], bytes],
        unix_ms: Callable[[], int],
    ) -> None:
        self._key = key
        self._me = peer_id_of(public_bytes(key))
        self._table = table
        self._serving = serving
        self._entropy = entropy
        self._unix_ms = unix_ms

    def answer(self, held: Held, sender: PeerId, stopping: str) -> tuple[Role, RemoteError | None]:
        """Our role in the round, and why it declines (None: it takes part); raises RemoteError for a header not meant for us."""
        if sender != held.signer:
            raise RemoteError(Code.REFUSED, "an invitation comes from the requester itself")
        engine = self._serving.engine
        style: Style = "instructed"
        if engine is not None and engine.model is not None and engine.model.judge_prompt == "compact":
            style = "compact"
        role = Role(MemberMachine(self._key, held.raw, self._entropy, self._unix_ms(), style), held.signer)
        if stopping:
            return role, RemoteError(Code.OVERLOADED, stopping)
        try:
            self._check(role.header, held.signer)
        except RemoteError as refusal:
            return role, refusal
        return role, None

    def _check(self, header: Header, requester: PeerId) -> None:
        """Raises RemoteError where we cannot take part."""
        engine = self._serving.engine
        if engine is None or engine.model is None:
            raise RemoteError(Code.NOT_FOUND, "this peer serves no model")
        if not self._serving.ready:
            raise RemoteError(Code.OVERLOADED, "this peer's engine is not ready")
        mine = next((candidate for candidate in header.candidates if candidate.peer_id == self._me), None)
        if mine is not None and mine.config_digest.hex() != engine.model.config_digest:
            raise RemoteError(Code.NOT_FOUND, "this peer serves another model by now")
        if len(seated := [role.requester for role in self._table.open() if not role.requested]) >= MAX_OPEN:
            raise RemoteError(Code.OVERLOADED, "this peer sits in as many rounds as it can")
        queued = self._serving.queued_seconds
        if queued > header.durations.answer_ms / 1000:
            have = f"{header.durations.answer_ms / 1000:g} s"
            raise RemoteError(Code.DEADLINE, f"an answer would take {queued:.0f} s here by our queue, and the round has {have}")
        if requester == self._me:
            return
        if seated.count(requester) >= MAX_OPEN_OF_PEER:
            raise RemoteError(Code.OVERLOADED, "this peer sits in as many of your rounds as it can")
        self._serving.within_limits(header.job)
