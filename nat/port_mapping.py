"""Which port mappings to ask of the gateway, by which method, when to renew, and when one may be told to others.

Pure: `(event, now) -> effects`; times in seconds. A driver talks to the gateway, one question at a time, and has peers dial back.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from nat.addresses import is_public
from nat.natpmp import Protocol


class Method(StrEnum):
    """How a gateway is asked; tried in this order, as PCP and NAT-PMP cost one datagram and UPnP two seconds of searching."""

    PCP = "pcp"
    NAT_PMP = "nat_pmp"
    UPNP = "upnp"


class State(StrEnum):
    """Where this stands, for people."""

    IDLE = "idle"
    """Nobody sees us behind a NAT yet, or there is none."""
    ASKING = "asking"
    NONE = "none"
    """No gateway grants one."""
    DOUBLE_NAT = "double_nat"
    """What the gateway calls outside is not where peers see us: another NAT follows, and the mapping leads nowhere."""
    UNPROVED = "unproved"
    """Granted, but no peer has come in by it."""
    ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class MappingOptions:
    """Seconds. Half of the two hours that RFC 6886 section 3.3 recommends, as a router that restarts forgets."""

    lifetime: int = 3600
    retry: float = 900.0
    shortest: float = 10.0
    longest: float = 86400.0


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the gateway for a port; `external_port` is a wish, 0 where any will do."""

    method: Method
    protocol: Protocol
    internal_port: int
    external_port: int
    lifetime: int


@dataclass(frozen=True, slots=True)
class Release:
    """Tell the gateway to forget one."""

    method: Method
    protocol: Protocol
    internal_port: int
    external_port: int


@dataclass(frozen=True, slots=True)
class Prove:
    """Have peers dial back: there is something new to prove."""


@dataclass(frozen=True, slots=True)
class Granted:
    """The gateway's outside address, the port there, and for how many seconds (0: without end).

    `epoch`: for how many seconds the gateway has kept its mappings, where the method tells.
    """

    host: str
    port: int
    lifetime: int
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Why not, in a few words."""

    reason: str


Effect = Ask | Release | Prove


@dataclass(slots=True)
class _Lease:
    """One mapping in force."""

    ask: Ask
    granted: Granted
    ends: float
    renew: float
    proved: bool = False


def leads_nowhere(host: str, seen: Collection[str]) -> bool:
    """Whether a second NAT follows: the outside address is not public, or peers see us at others alone (none: not known)."""
    if not is_public(host):
        return True
    return bool(seen) and host not in seen


@dataclass
class PortMappings:
    """The mappings of one peer: `ports` by protocol, as we listen. Answer every Ask by `answered` before the next `tick`."""

    ports: Mapping[Protocol, int]
    methods: tuple[Method, ...]
    options: MappingOptions = MappingOptions()
    state: State = State.IDLE
    method: Method | None = None
    reason: str = ""
    """Why there is none, the last one that was heard."""
    wake: float = float("inf")
    _leases: dict[Protocol, _Lease] = field(default_factory=dict)
    _seen: frozenset[str] = frozenset()
    _doubted: str = ""
    _epochs: dict[Method, tuple[int, float]] = field(default_factory=dict)
    _missing: float = float("inf")
    """When what is not held beside TCP is asked for."""

    # ---- events

    def behind(self, seen: Collection[str], now: float) -> list[Effect]:
        """Peers see us at these addresses, none of which is our own: ask, unless that is being done."""
        changed = frozenset(seen) != self._seen
        self._seen = frozenset(seen)
        if self.state is State.IDLE:
            return self._begin(now)
        if self.state is State.DOUBLE_NAT and changed and self._doubted in self._seen:
            return self._begin(now)  # only the first peer was wrong about us
        outside = next((lease.granted.host for lease in self._leases.values()), None)
        if changed and outside is not None and leads_nowhere(outside, self._seen):
            return self._double(now)
        return []

    def tick(self, now: float) -> list[Effect]:
        """What is due."""
        if now < self.wake:
            return []
        if self.state in (State.NONE, State.DOUBLE_NAT):
            return self._begin(now)
        due: list[Effect] = []
        for protocol, lease in tuple(self._leases.items()):
            if now >= lease.ends:
                del self._leases[protocol]
                self._missing = now
            elif now >= lease.renew:
                # Again after half of what is left, should no answer come (RFC 6887 section 11.2.1).
                lease.renew = now + max(self.options.shortest, (lease.ends - now) / 2)
                due.append(self._again(lease))
        if Protocol.TCP not in self._leases and Protocol.TCP in self.ports:
            return [*self.stop(), *self._begin(now)]
        if now >= self._missing and self.method is not None:
            self._missing = float("inf")
            due += self._others(self.method)
        self._plan()
        return due

    def answered(self, ask: Ask, answer: Granted | Refused, now: float) -> list[Effect]:
        """The gateway's answer to `ask`, or that it gave none."""
        if isinstance(answer, Refused):
            return self._refused(ask, answer, now)
        if leads_nowhere(answer.host, self._seen):
            self._keep(ask, answer, now)
            return self._double(now)
        lost = [] if answer.epoch is None else self.told_epoch(ask.method, answer.epoch, now)
        again = [one for one in lost if isinstance(one, Ask) and one.protocol is not ask.protocol]
        before = self._leases.get(ask.protocol)
        lease = self._keep(ask, answer, now)
        lease.proved = before is not None and before.proved and before.granted.port == answer.port
        if before is None:
            self.method, self.reason = ask.method, ""
            self.state = State.ACTIVE if any(held.proved for held in self._leases.values()) else State.UNPROVED
            self._plan()
            others = self._others(ask.method) if ask.protocol is Protocol.TCP else []
            return [*again, *others, Prove()]
        self._plan()
        return [*again, *([] if lease.proved else [Prove()])]

    def told_epoch(self, method: Method, seconds: int, now: float) -> list[Effect]:
        """For how many seconds the gateway has kept its mappings: fewer than it should means that it lost them all.

        By PCP more does, too (another gateway answers). The tolerance is that of RFC 6887 section 8.5: two seconds, and a
        sixteenth for clocks that run apart.
        """
        before = self._epochs.get(method)
        self._epochs[method] = seconds, now
        if before is None or self.method is not method:
            return []
        ours, theirs = now - before[1], seconds - before[0]
        behind, ahead = theirs + 2 < ours - ours / 16, ours + 2 < theirs - theirs / 16
        if not behind and not (ahead and method is Method.PCP):
            return []
        return [self._again(lease) for lease in self._leases.values()]

    def judged(self, protocol: Protocol, port: int, came_in: bool) -> list[Effect]:
        """Peers were asked to come in at our outside `port`. One that no longer works is asked for again."""
        lease = self._leases.get(protocol)
        if lease is None or lease.granted.port != port:
            return []
        lost = lease.proved and not came_in
        lease.proved = came_in
        proved = any(lease.proved for lease in self._leases.values())
        self.state = State.ACTIVE if proved else State.UNPROVED
        if not lost:
            return []
        return [self._again(lease)]

    def stop(self) -> list[Effect]:
        """Give back all that we hold."""
        held, self._leases = self._leases, {}
        return [Release(one.ask.method, protocol, one.ask.internal_port, one.granted.port) for protocol, one in held.items()]

    # ---- what is known

    def to_prove(self, protocol: Protocol) -> int | None:
        """The outside port at which peers should try to come in; None where none is held."""
        lease = self._leases.get(protocol)
        return None if lease is None else lease.granted.port

    def outside(self, protocol: Protocol) -> tuple[str, int] | None:
        """The address that may be told to others: one at which a peer came in."""
        lease = self._leases.get(protocol)
        return None if lease is None or not lease.proved else (lease.granted.host, lease.granted.port)

    def ends(self) -> float | None:
        """When the first lease ends if nobody renews it; None where none is held."""
        return min((lease.ends for lease in self._leases.values()), default=None)

    # ---- inside

    def _begin(self, now: float) -> list[Effect]:
        if not self.methods or Protocol.TCP not in self.ports:
            return self._none("nothing to ask with", now)
        self.state, self.wake = State.ASKING, float("inf")
        return [self._first(self.methods[0])]

    def _first(self, method: Method) -> Ask:
        # The wish for the same number outside: peers behind port-preserving NATs guess it, and a restarted daemon gets it again.
        port = self.ports[Protocol.TCP]
        return Ask(method, Protocol.TCP, port, port, self.options.lifetime)

    def _others(self, method: Method) -> list[Effect]:
        missing = [protocol for protocol in self.ports if protocol not in self._leases]
        return [Ask(method, protocol, self.ports[protocol], self.ports[protocol], self.options.lifetime) for protocol in missing]

    def _refused(self, ask: Ask, answer: Refused, now: float) -> list[Effect]:
        self.reason = f"{ask.method}: {answer.reason}"
        if self.state is not State.ASKING or ask.protocol is not Protocol.TCP:
            if ask.protocol not in self._leases:
                self._missing = now + self.options.retry  # UDP is done without meanwhile
                self._plan()
            return []  # a renewal is tried again
        place = self.methods.index(ask.method) + 1
        if place < len(self.methods):
            return [self._first(self.methods[place])]
        return self._none(self.reason, now)

    def _none(self, reason: str, now: float) -> list[Effect]:
        self.state, self.reason, self.wake = State.NONE, reason, now + self.options.retry
        return []

    def _double(self, now: float) -> list[Effect]:
        self._doubted = next((lease.granted.host for lease in self._leases.values()), "")
        given_back = self.stop()
        self.state, self.wake = State.DOUBLE_NAT, now + self.options.retry
        self.reason = "another NAT follows the gateway"
        return given_back

    def _keep(self, ask: Ask, granted: Granted, now: float) -> _Lease:
        # 0 is UPnP's "without end": looked at again all the same.
        lifetime = min(max(granted.lifetime or self.options.lifetime, self.options.shortest), self.options.longest)
        lease = _Lease(ask, granted, now + lifetime, now + lifetime / 2)
        self._leases[ask.protocol] = lease
        return lease

    def _again(self, lease: _Lease) -> Ask:
        return Ask(lease.ask.method, lease.ask.protocol, lease.ask.internal_port, lease.granted.port, self.options.lifetime)

    def _plan(self) -> None:
        self.wake = min([self._missing, *(min(lease.renew, lease.ends) for lease in self._leases.values())])
