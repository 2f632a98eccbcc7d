"""Our machines by round: who finds which, and how many are held of whom. Starts and drives none."""

from collections.abc import Iterable, Iterator

from daemon.round_role import Role
from protocol.round.pulling import PullRequest, as_hashes
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import Hash, PeerId

MAX_HELD = 128
"""Roles held in all, those of closed rounds that still serve pulls included; the oldest closed one makes room."""

MAX_HELD_OF_PEER = 32

Name = tuple[Hash, bool]
"""A round, and whether it is the requester's role in it."""


class RoundTable:
    """Every role of this peer, by round. `me` is not bounded by what one peer may have."""

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._roles: dict[Name, Role] = {}

    def __iter__(self) -> Iterator[Role]:
        return iter(list(self._roles.values()))

    def open(self) -> list[Role]:
        """Roles that have not closed."""
        return [role for role in self._roles.values() if not role.machine.closed]

    def find(self, round_id: Hash, kinds: tuple[bool, ...] = (True, False)) -> list[Role]:
        """Our roles in a round: the requester's (True), the member's (False)."""
        return [role for requested in kinds if (role := self._roles.get((round_id, requested))) is not None]

    def add(self, role: Role) -> None:
        """Hold one more; raises RemoteError(overloaded) where no closed one can make room."""
        if role.requester != self._me:
            self._make_room([name for name, held in self._roles.items() if held.requester == role.requester], MAX_HELD_OF_PEER)
        self._make_room(list(self._roles), MAX_HELD)
        self._roles[role.machine.round, role.requested] = role

    def discard(self, role: Role) -> None:
        name = (role.machine.round, role.requested)
        if self._roles.get(name) is role:
            del self._roles[name]

    def _make_room(self, names: list[Name], limit: int) -> None:
        if len(names) < limit:
            return
        closed = [(self._roles[name].over_at, name) for name in names if self._roles[name].machine.closed]
        if not closed:
            raise RemoteError(Code.OVERLOADED, "too many rounds at once", retry_after=5.0)
        self._roles.pop(min(closed)[1]).retire()


def held_by(roles: Iterable[Role], request: PullRequest) -> list[bytes]:
    """What machines hold of what is asked for, each message once."""
    return list(dict.fromkeys(raw for role in roles for raw in role.machine.serve(as_hashes(request))))
