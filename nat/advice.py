"""One line of advice from what is known of our place in the network. Pure; measures nothing."""

from dataclasses import dataclass

from nat.observed import Mapping


@dataclass(frozen=True, slots=True)
class Standing:
    """What netcheck found out; None where it is not known. `relays`: how many hold us; `connected`: peers."""

    udp: bool | None
    reachable: bool | None
    """Whether peers that we talk to can come in."""
    strangers: bool | None
    """Whether others can, too."""
    mapping: Mapping
    relays: int
    connected: int


def failing_leg(standing: Standing) -> str | None:
    """The first thing that stands between us and the others; None where nothing does or nothing is known."""
    if not standing.connected:
        return "no peer is connected"
    if standing.reachable is False and not standing.relays:
        return "nobody can come in, and no relay holds us"
    if standing.udp is False:
        return "UDP does not pass"
    if standing.mapping is Mapping.SYMMETRIC:
        return "the NAT gives every destination another port"
    return None


def advice(standing: Standing) -> str:
    """What to do, or that nothing needs doing."""
    if not standing.connected:
        return "name a peer that can be reached: swarmd start --join /ip4/<address>/tcp/<port>/p2p/<peer id>"
    if standing.reachable is False and not standing.relays:
        return "join a peer that relays (relay.serve=true on a box with a public address), or forward the TCP port to this box"
    if standing.reachable is True:
        if standing.strangers or standing.mapping is Mapping.NONE:
            return "nothing to do: others can come in"
        return "nothing to do, as far as is known: peers that we talk to can come in"
    if standing.mapping is Mapping.SYMMETRIC and standing.udp is False:
        return "peers behind NATs stay on relays: allow UDP, or forward the TCP port to this box"
    if standing.mapping is Mapping.SYMMETRIC:
        return "most peers are found by guessing ports; forward the TCP port to this box to be reached at once"
    if standing.udp is False:
        return "nothing to do, but for peers behind symmetric NATs: they need UDP"
    if standing.relays:
        return "nothing to do: peers are met at relays and then reached directly"
    return "wait for a relay, or join a peer that relays"
