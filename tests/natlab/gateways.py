"""miniupnpd on a laboratory's router: a gateway that grants ports by PCP, NAT-PMP and UPnP as those at home do."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.natlab.namespaces import LabError, Namespaces

PACKAGE = "miniupnpd"
_CHAINS = """table inet upnp {
 chain forward { type filter hook forward priority -1; policy accept; jump granted; }
 chain granted { }
 chain prerouting { type nat hook prerouting priority -101; policy accept; jump inward; }
 chain postrouting { type nat hook postrouting priority 101; policy accept; jump outward; }
 chain inward { }
 chain outward { }
}"""


def why_no_gateway() -> str | None:
    """Why no gateway can run here, None where one can."""
    return None if shutil.which(PACKAGE) else f"install what is missing: apt-get install {PACKAGE}"


class Miniupnpd:
    """One on the router `router`, whose lan0 is inside and wan0 outside. End it by `close`."""

    def __init__(self, spaces: Namespaces, router: str, folder: Path, *, network: str, outside: str) -> None:
        """`network` is the inside's, such as 192.168.1.0/24; `outside` the address of wan0."""
        self.leases = folder / f"{router}.leases"
        configuration = folder / f"{router}.conf"
        configuration.write_text(
            f"ext_ifname=wan0\next_ip={outside}\nlistening_ip=lan0\nhttp_port=0\n"
            "enable_natpmp=yes\nenable_upnp=yes\n"
            "upnp_table_name=upnp\nupnp_nat_table_name=upnp\nupnp_forward_chain=granted\nupnp_nat_chain=inward\n"
            f"upnp_nat_postrouting_chain=outward\nlease_file={self.leases}\nsecure_mode=yes\nsystem_uptime=no\n"
            f"uuid=00000000-0000-0000-0000-000000000001\nallow 1024-65535 {network} 1024-65535\n"
            "deny 0-65535 0.0.0.0/0 0-65535\n"
        )
        spaces.execute(router, "nft", "-f", "-", text=_CHAINS)
        self.log = folder / f"{router}.log"
        self._command = [PACKAGE, "-d", "-f", str(configuration), "-P", str(folder / f"{router}.pid")]
        self._router, self._spaces = router, spaces
        self._start()

    def _start(self) -> None:
        with self.log.open("ab") as log:
            self._process = self._spaces.popen(self._router, self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while not all(port in (listens := self._spaces.execute(self._router, "ss", "-lnu")) for port in (":5351 ", ":1900 ")):
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise LabError(f"{PACKAGE} does not listen: {self.log.read_text()[-800:]} {listens}")
            time.sleep(0.05)

    def restart(self) -> list[str]:
        """Lose power and come back; the rules that are left of what was granted, which are none."""
        self._process.kill()
        self._process.wait(5)
        for chain in ("granted", "inward", "outward"):
            self._spaces.execute(self._router, "nft", "flush", "chain", "inet", "upnp", chain)
        self.leases.unlink(missing_ok=True)
        left = self.granted()
        self._start()
        return left

    def granted(self) -> list[str]:
        """The rules that pass ports on, as nftables prints them."""
        listed = self._spaces.execute(self._router, "nft", "list", "chain", "inet", "upnp", "inward")
        return [line.strip() for line in listed.splitlines() if "dnat" in line]

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
