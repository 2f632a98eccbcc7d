"""Who is wired to what: a backbone 44.1.1.0/24 with relays on it, and sites behind routers of every type."""

import atexit
from dataclasses import dataclass

from tests.natlab.forkserver import ForkServer
from tests.natlab.namespaces import Namespaces, sweep
from tests.natlab.routers import rules
from tests.natlab.switch import Switch

RELAYS = ("44.1.1.10", "44.1.1.11")


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
        self._taps: dict[str, int] = {}
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
