"""One side of a UDP hole punch: which datagrams leave which socket towards where, and when a path both ways is found.

Pure: `(event, now) -> effects`. A driver owns the sockets (number 0 is the mesh port's) and the clock. What is sent to an address
that nothing was heard from is bounded, since a peer that names another's address must not gain traffic by it. What was heard may
be forged by the peer, too: it draws one shorter datagram, and a path counts as found once the peer proved that it receives there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from ipaddress import ip_address
from random import Random

from nat.datagrams import PROOF_BYTES, Ack, Probe, decode, encode
from nat.observed import HARD, Mapping
from nat.punch_messages import KNOCKS, MOST_KNOCKS


class Way(StrEnum):
    """How one side looks for the other."""

    PLAIN = "plain"
    """Both ports are known: knock and learn from what arrives."""
    GUESS = "guess"
    """Ours is known, the peer's NAT hands out a port that nobody knows: knock at many."""
    SPREAD = "spread"
    """The peer guesses: open many sockets, each with a port of its own outside."""
    WALK = "walk"
    """Both NATs count: knock at each of the peer's next ports, from our one. Only once a witness has seen the peer, as MEET."""
    MEET = "meet"
    """Both NATs count and the peer walks: knock from many sockets at one of its next ports, at which it must come by."""
    NONE = "none"
    """Nothing that is worth trying: both ports are random, or there is no UDP."""


def way_of(ours: Mapping, theirs: Mapping, birthday: bool, starter: bool) -> Way:
    """The way for us; the peer's is `way_of` from its side. UNKNOWN counts as a known port."""
    if ours not in HARD and theirs not in HARD:
        return Way.PLAIN
    if ours is Mapping.PREDICTABLE and theirs is Mapping.PREDICTABLE:
        return Way.MEET if starter else Way.WALK
    if ours in HARD and theirs in HARD:
        return Way.NONE
    if not birthday:
        return Way.PLAIN
    return Way.SPREAD if ours in HARD else Way.GUESS


@dataclass(frozen=True, slots=True)
class PunchOptions:
    """Seconds and counts. 256 sockets and 1,024 probes meet with 98% (research, as Tailscale); 1,000 probes a second at most."""

    lifetime: float = 6.0
    interval: float = 0.1
    knocks: int = KNOCKS
    """Datagrams to one address that nothing was heard from."""
    unheard: int = MOST_KNOCKS
    """Datagrams of a session to all such addresses together. A witness's word allows 1,024 more."""
    guess_after: float = 0.1
    guesses: int = 1024
    guess_burst: int = 20
    guess_interval: float = 0.02
    sockets: int = 256
    sockets_burst: int = 64
    spread_interval: float = 0.5
    meeting: int = 24
    counting_interval: float = 0.2


@dataclass(frozen=True, slots=True)
class Send:
    """Send `payload` from socket number `socket` to (host, port)."""

    socket: int
    host: str
    port: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class OpenSockets:
    """Open sockets numbered 1 to `count - 1`, each on a port of its own."""

    count: int


@dataclass(frozen=True, slots=True)
class Found:
    """Datagrams pass both ways between socket number `socket` and (host, port): for the side that did not start, which connects.

    `ticket` is what the peer's machine calls `proof_of` our end of the path: who says it receives what is sent to us.
    """

    socket: int
    host: str
    port: int
    ticket: bytes


@dataclass(frozen=True, slots=True)
class Over:
    """The lifetime is over, whether or not a path was found."""


Effect = Send | OpenSockets | Found | Over
Target = tuple[str, int]


class UdpPunch:
    """Call `start` once, `heard` for each datagram, `tick` at `wake` (absolute seconds); do what they return, in order."""

    def __init__(
        self, starter: bool, tokens: tuple[bytes, bytes], way: Way, targets: Sequence[Target], rng: Random, options: PunchOptions
    ) -> None:
        """`tokens`: the session's, and a secret of this side alone, of 16 bytes or more.

        `targets` are the peer's announced IPs and ports, the likeliest first; to WALK its next ports, to MEET one of them.
        """
        self.wake = 0.0
        self.probes = 0
        """Guesses sent so far."""
        self._options = options
        self._way = way
        self._targets = tuple((str(ip_address(host)), port) for host, port in targets)
        self.token, self._secret = tokens
        self._starter = starter
        self._rng = rng
        self._knocked: dict[Target, int] = {}
        self._paths: dict[tuple[int, str, int], int] = {}
        self._found = self._over = False
        self._may_send_many = False
        self.blind = 0
        """Datagrams sent so far to addresses that nothing was heard from."""
        self._guessing = self._next_knock = self._next_guess = self._end = 0.0
        self._spread = 0
        """The socket whose turn to knock is next."""
        self._sockets = options.meeting if way is Way.MEET else options.sockets
        self._ports: list[int] = []

    def start(self, now: float) -> list[Effect]:
        """Begin."""
        self._end = now + self._options.lifetime
        self._guessing = now + self._options.guess_after
        self._next_knock = self._next_guess = now
        effects: list[Effect] = []
        if self._way in (Way.SPREAD, Way.MEET):
            effects.append(OpenSockets(self._sockets))
        return [*effects, *self.tick(now)]

    def allow_many(self, now: float) -> None:
        """A witness has seen the peer at the address that it names: guesses, or knocks from many sockets, may go there."""
        self._may_send_many = True
        if self._way is not Way.PLAIN:
            self._next_knock = now
        self.wake = min(self.wake, now)

    def settle(self) -> None:
        """The peer has begun to use a path: knock no more."""
        self._found = True

    def tick(self, now: float) -> list[Effect]:
        """What is due."""
        effects: list[Effect] = []
        if self._over:
            return effects
        if now >= self._end:
            self._over, self.wake = True, float("inf")
            return [Over()]
        if not self._found:
            if now >= self._next_knock:
                effects += self._knock(now)
            if self._way is Way.GUESS and self._may_send_many and now >= max(self._guessing, self._next_guess):
                effects += self._guess(now)
        due = [self._end, self._next_knock]
        if self._way is Way.GUESS and self._may_send_many and self.probes < self._options.guesses:
            due.append(max(self._guessing, self._next_guess))
        self.wake = self._end if self._found else min(due)
        return effects

    def heard(self, socket: int, host: str, port: int, payload: bytes, now: float) -> list[Effect]:
        """A datagram arrived; one that is not this session's changes nothing."""
        datagram = decode(payload)
        if not isinstance(datagram, Probe | Ack) or datagram.token != self.token or datagram.starter == self._starter:
            return []
        path = (socket, host, port)
        if isinstance(datagram, Probe):
            return self._answer(path, datagram)
        if self._found or self._starter or datagram.echo != self.proof_of(*path):
            return []
        self._found = True
        self.wake = now
        return [Found(*path, datagram.proof)]

    def proof_of(self, socket: int, host: str, port: int) -> bytes:
        """What only who receives what leaves `socket` for (host, port) can say."""
        return blake2b(f"{socket} {host} {port}".encode(), digest_size=PROOF_BYTES, key=self._secret).digest()

    def _answer(self, path: tuple[int, str, int], probe: Probe) -> list[Effect]:
        """One datagram, and a shorter one, as often as something comes: no repeats, the peer knocks again."""
        answered, full = self._paths.get(path, 0), len(self._paths) >= self._options.knocks
        if self._found or answered >= self._options.knocks or (full and path not in self._paths):
            return []
        self._paths[path] = answered + 1
        answer = Ack(self.token, True, probe.proof, self.proof_of(*path)) if self._starter else self._probe(*path)
        return [Send(*path, encode(answer))]

    def _probe(self, socket: int, host: str, port: int) -> Probe:
        return Probe(self.token, self._starter, self.proof_of(socket, host, port))

    def _send_probe(self, socket: int, host: str, port: int) -> Send:
        return Send(socket, host, port, encode(self._probe(socket, host, port)))

    def _knock(self, now: float) -> list[Effect]:
        if self._way in (Way.WALK, Way.MEET) and not self._may_send_many:
            self._next_knock = self._end
            return []
        if self._way is Way.MEET or (self._way is Way.SPREAD and self._may_send_many):
            return self._open_mappings(now)
        self._next_knock = now + (self._options.counting_interval if self._way is Way.WALK else self._options.interval)
        effects: list[Effect] = []
        for target in self._targets:
            knocks = self._knocked.get(target, 0)
            if knocks < self._options.knocks and self._may_send_blindly(1):
                self._knocked[target] = knocks + 1
                effects.append(self._send_probe(0, *target))
        return effects

    def _may_send_blindly(self, count: int) -> bool:
        allowed = self._options.unheard + (self._options.guesses if self._may_send_many else 0)
        if self.blind + count > allowed:
            return False
        self.blind += count
        return True

    def _open_mappings(self, now: float) -> list[Effect]:
        """One knock from each socket, in bursts; all of them again after a while, for those that were lost."""
        first = self._spread
        last = min(first + self._options.sockets_burst, self._sockets)
        finished = last == self._sockets
        self._spread = 0 if finished else last
        again = self._options.counting_interval if self._way is Way.MEET else self._options.spread_interval
        self._next_knock = now + (again if finished else self._options.guess_interval)
        target = self._targets[0]
        knocks = self._knocked.get(target, 0) + last - first
        if knocks > 4 * self._sockets or not self._may_send_blindly(last - first):
            return []
        self._knocked[target] = knocks
        return [self._send_probe(socket, *target) for socket in range(first, last)]

    def _guess(self, now: float) -> list[Effect]:
        if not self._ports:
            self._ports = self._rng.sample(range(1024, 65536), self._options.guesses)
        self._next_guess = now + self._options.guess_interval
        host = self._targets[0][0]
        chosen = self._ports[self.probes : self.probes + self._options.guess_burst]
        if not self._may_send_blindly(len(chosen)):
            return []
        self.probes += len(chosen)
        return [self._send_probe(0, host, port) for port in chosen]
