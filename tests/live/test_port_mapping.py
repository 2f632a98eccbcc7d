"""Our gateway client against miniupnpd in namespaces: each method maps a port, strangers come in, and it is given back."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.natlab.gateways import Miniupnpd, why_no_gateway
from tests.natlab.namespaces import Namespaces, sweep, what_is_missing
from tests.natlab.routers import rules

pytestmark = [pytest.mark.live, pytest.mark.slow]

HOME, OUTSIDE, STRANGER = "192.168.1.2", "44.1.1.21", "44.1.1.10"
PORT = 4711

CLIENT = """
import json, os, sys, trio
from daemon.transport.gateway import Gateway, default_gateway
from nat.natpmp import Protocol
from nat.port_mapping import Ask, Granted, Method, Release

async def main():
    gateway = Gateway(os.urandom)
    for method in (Method(line.strip()) for line in sys.stdin):
        told = {"gateway": default_gateway()}
        for protocol in Protocol:
            answer = await gateway.ask(Ask(method, protocol, 4711, 4711, 3600))
            told[protocol.name] = [answer.host, answer.port, answer.lifetime] if isinstance(answer, Granted) else answer.reason
        print(json.dumps(told), flush=True)
        sys.stdin.readline()
        for protocol in Protocol:
            await gateway.release(Release(method, protocol, 4711, 4711))
        print("{}", flush=True)

trio.run(main)
"""

TCP_SERVER = "import socket\nwith socket.create_server(('', 4711)) as s:\n c, _ = s.accept()\n c.sendall(b'in')\n c.close()"
UDP_SERVER = (
    "import socket\nwith socket.socket(type=socket.SOCK_DGRAM) as s:\n s.bind(('', 4711))\n"
    " _, stranger = s.recvfrom(99)\n s.sendto(b'in', stranger)"
)
TCP_STRANGER = "import socket\nwith socket.create_connection(('44.1.1.21', 4711), 0.5) as s: print(s.recv(9).decode())"
UDP_STRANGER = (
    "import socket\nwith socket.socket(type=socket.SOCK_DGRAM) as s:\n s.settimeout(0.5)\n s.sendto(b'?', ('44.1.1.21', 4711))\n"
    " print(s.recv(9).decode())"
)


@pytest.fixture
def home():
    """A box behind a symmetric NAT whose router runs miniupnpd, and a stranger outside."""
    missing = what_is_missing() or why_no_gateway()
    if missing:
        pytest.skip(missing)
    sweep()
    spaces, folder = Namespaces(), Path(tempfile.mkdtemp(prefix="swmap", dir="/tmp"))
    gateway = None
    try:
        for name in ("A", "H", "S"):
            spaces.add(name, forwards=name == "H")
        spaces.link(("H", "wan0"), ("S", "eth0"))
        spaces.link(("H", "lan0"), ("A", "eth0"))
        spaces.address("H", "wan0", f"{OUTSIDE}/24")
        spaces.address("S", "eth0", f"{STRANGER}/24")
        spaces.address("H", "lan0", "192.168.1.1/24")
        spaces.address("A", "eth0", f"{HOME}/24")
        spaces.route("A", "192.168.1.1")
        spaces.execute("H", "nft", "-f", "-", text=rules("sym", OUTSIDE))
        gateway = Miniupnpd(spaces, "H", folder, network="192.168.1.0/24", outside=OUTSIDE)
        yield spaces, gateway
    finally:
        if gateway is not None:
            gateway.close()
        spaces.close()
        shutil.rmtree(folder, ignore_errors=True)


def reached(spaces, server, stranger):
    """Whether a stranger gets to a server that the box runs."""
    serving = spaces.popen("A", [sys.executable, "-c", server], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 5
        while f":{PORT}" not in spaces.execute("A", "ss", "-lntu") and time.monotonic() < deadline:
            time.sleep(0.02)
        asked = spaces.popen("S", [sys.executable, "-c", stranger], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return asked.communicate(timeout=10)[0].strip() == b"in"
    finally:
        serving.kill()
        serving.wait()


def say(client, line):
    client.stdin.write(f"{line}\n".encode())
    client.stdin.flush()
    return json.loads(client.stdout.readline())


def test_a_mapping_lets_strangers_in_until_it_is_given_back(home):
    spaces, gateway = home
    assert not reached(spaces, TCP_SERVER, TCP_STRANGER), "a symmetric NAT lets nobody in"
    command = [sys.executable, "-u", "-c", CLIENT]
    client = spaces.popen("A", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        for method in ("pcp", "nat_pmp", "upnp"):
            told = say(client, method)
            print(method, told)
            assert told["gateway"] == "192.168.1.1"
            for protocol in ("TCP", "UDP"):
                host, port, lifetime = told[protocol]
                assert (host, port) == (OUTSIDE, PORT)
                assert 3000 <= lifetime <= 3600
            assert len(gateway.granted()) == 2
            assert reached(spaces, TCP_SERVER, TCP_STRANGER)
            assert reached(spaces, UDP_SERVER, UDP_STRANGER)
            say(client, "")
            assert gateway.granted() == []
        assert not reached(spaces, TCP_SERVER, TCP_STRANGER)
    finally:
        client.kill()
        client.wait()
        client.stdin.close()
        client.stdout.close()
