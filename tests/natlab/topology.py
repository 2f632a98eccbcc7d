"""Who is wired to what: a backbone 44.1.1.0/24 with relays on it, and sites behind routers of every type."""

import atexit
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tests.forkserver import ForkServer
from tests.natlab.namespaces import Namespaces, run, sweep
from tests.natlab.routers import IPV6_FIREWALL, rules
from tests.natlab.switch import Switch

T = TypeVar("T")

_TRIES = 3
_STANDSTILL_SECONDS = 1.0
RELAYS = ("44.1.1.10", "44.1.1.11")
BACKBONE6 = "2a00:4401:1:0"
"""Of the public space, since private and documentation addresses are treated otherwise."""


@dataclass(frozen=True)
class Site:
    """One household: `name` is the namespace of its box, `address` that box's own IP, `routers` what stands before it."""

    name: str
    kind: str
    address: str
    outside: str
    routers: tuple[str, ...]


class Lab:
    """A backbone with a round trip of `rtt` seconds between any two of its stations. Use as a context; nothing outlives it."""

    def __init__(self, rtt: float = 0.040, loss: float = 0.0, *, resets: bool = False) -> None:
        sweep()
        self.spaces = Namespaces()
        self.forkserver = ForkServer()
        self.resets = resets
        self.log_level = "info"
        self._taps: dict[str, int] = {}
        self._routes6: list[tuple[str, str]] = []
        self.switch = Switch(rtt / 2, loss)
        atexit.register(self.close)
        self._closed = False
        for index, address in enumerate(RELAYS, 1):
            self.spaces.add(f"R{index}")
            self._outside(f"R{index}", "eth0", address)

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self.switch.close()
        self.forkserver.close()
        self.spaces.close()

    def undisturbed(self, what: str, run: Callable[[], T]) -> T:
        """What `run` returns, once more where the machine stood still meanwhile, as where others measure; three times at most."""
        for _ in range(_TRIES - 1):
            before = self.switch.stood_still
            found = run()
            if (lost := self.switch.stood_still - before) < _STANDSTILL_SECONDS:
                return found
            print(f"{what}: run again, as the machine stood still for {lost:.1f} s", file=sys.stderr, flush=True)
        return run()

    def add(self, name: str, kind: str, number: int) -> Site:
        """A site behind a NAT of `kind`; `number` (1 to 99) gives its networks."""
        outside = f"44.1.1.{20 + number}"
        if kind == "open":
            self.spaces.add(name)
            self._outside(name, "eth0", outside)
            return Site(name, kind, outside, outside, ())
        home, carrier = f"H{name}", f"C{name}"
        self.spaces.add(name)
        self.spaces.add(home, forwards=True)
        home_outside = outside
        if kind == "cgn":
            home_outside = f"100.64.{number}.2"
            self.spaces.add(carrier, forwards=True)
            self._outside(carrier, "wan0", outside)
            self._inside(carrier, f"100.64.{number}.1", home, "wan0", home_outside)
            self._translate(carrier, "portnp", outside)
        else:
            self._outside(home, "wan0", outside)
        own = f"192.168.{number}.2"
        self._inside(home, f"192.168.{number}.1", name, "eth0", own)
        self._translate(home, "port" if kind == "cgn" else kind, home_outside)
        return Site(name, kind, own, outside, (home, carrier) if kind == "cgn" else (home,))

    def remove(self, site: Site) -> None:
        for name in (site.name, *site.routers):
            if name in self._taps:
                self.switch.unplug(self._taps.pop(name))
            self.spaces.remove(name)

    def add_neighbour(self, name: str, other: str, number: int) -> None:
        """A box `other` on the same cable as the box of the site `name`, whose `number` is given."""
        home, full = f"H{name}", self.spaces.full(f"H{name}")
        self.spaces.add(other)
        for command in (
            ("link", "set", "lan0", "down"), ("addr", "flush", "dev", "lan0"), ("link", "set", "lan0", "name", "port0"),
            ("link", "add", "lan0", "type", "bridge"), ("link", "set", "port0", "master", "lan0"), ("link", "set", "port0", "up"),
        ):  # fmt: skip
            run("ip", "-n", full, *command)
        self.spaces.address(home, "lan0", f"192.168.{number}.1/24")
        self.spaces.link((home, "port1"), (other, "eth0"))
        run("ip", "-n", full, "link", "set", "port1", "master", "lan0", "up")
        self.spaces.address(other, "eth0", f"192.168.{number}.3/24")
        self.spaces.route(other, f"192.168.{number}.1")

    def restrict(self, name: str, port: int) -> None:
        """Let nothing but TCP to `port` out of the site `name`, and nothing in but answers."""
        self.spaces.execute(
            f"H{name}", "nft", "add table inet office;"
            " add chain inet office out { type filter hook forward priority 0; policy drop; };"
            f" add rule inet office out ct state established,related accept; add rule inet office out tcp dport {port} accept",
        )  # fmt: skip

    def add_ipv6_relays(self) -> list[str]:
        """IPv6 addresses of the relays, which keep their IPv4 ones."""
        found = []
        for index in range(1, len(RELAYS) + 1):
            found.append(f"{BACKBONE6}::{index:x}0")
            self.spaces.address(f"R{index}", "eth0", f"{found[-1]}/64")
        return found

    def add_ipv6(self, name: str, number: int) -> Site:
        """A site without IPv4 whose router is a stateful firewall; every station of the backbone gets a route to it."""
        home, prefix, outside = f"H{name}", f"{BACKBONE6[:-1]}{number:x}", f"{BACKBONE6}::1{number:02x}"
        self.spaces.add(name)
        self.spaces.add(home, forwards=True)
        self._taps[home] = self.spaces.tap(home, "wan0")
        self.spaces.address(home, "wan0", f"{outside}/64")
        self.switch.plug(self._taps[home])
        self.spaces.link((home, "lan0"), (name, "eth0"))
        self.spaces.address(home, "lan0", f"{prefix}::1/64")
        self.spaces.address(name, "eth0", f"{prefix}::2/64")
        self.spaces.route(name, f"{prefix}::1")
        self.spaces.execute(home, "nft", "-f", "-", text=IPV6_FIREWALL)
        for station in self._taps:
            if station != home:
                run("ip", "-6", "-n", self.spaces.full(station), "route", "replace", f"{prefix}::/64", "via", outside)
        self._routes6.append((prefix, outside))
        for other, gateway in self._routes6[:-1]:
            run("ip", "-6", "-n", self.spaces.full(home), "route", "replace", f"{other}::/64", "via", gateway)
        return Site(name, "ipv6", f"{prefix}::2", outside, (home,))

    def _outside(self, name: str, device: str, *addresses: str) -> None:
        self._taps[name] = self.spaces.tap(name, device)
        self.spaces.address(name, device, *(f"{address}/24" for address in addresses))
        self.switch.plug(self._taps[name])

    def _inside(self, router: str, gateway: str, name: str, device: str, address: str) -> None:
        self.spaces.link((router, "lan0"), (name, device))
        self.spaces.address(router, "lan0", f"{gateway}/24")
        self.spaces.address(name, device, f"{address}/24")
        self.spaces.route(name, gateway)

    def _translate(self, router: str, kind: str, outside: str) -> None:
        self.spaces.execute(router, "nft", "-f", "-", text=rules(kind, outside, resets=self.resets))
