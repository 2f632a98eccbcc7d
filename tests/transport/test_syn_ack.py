"""A SYN with a forged source draws two SYN-ACKs from the kernel for our mesh port, where other sockets send six."""

from typing import Any

import pytest

PROGRAM = """
import select, socket, struct, subprocess, time
import trio
from multiaddr import Multiaddr
from daemon.transport.tcp import SharedPortTCP

def checksum(raw):
    total = sum(struct.unpack(f"!{len(raw) // 2}H", raw))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

def syn(source, target, port):
    "An Ethernet payload: IPv4 and TCP without options, 40 bytes."
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0) + ends
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    tcp = struct.pack("!HHIIBBHHH", 4000, port, 1, 0, 0x50, 2, 65535, 0, 0)
    summed = checksum(ends + struct.pack("!BBH", 0, 6, 20) + tcp)
    return ip + tcp[:16] + struct.pack("!H", summed) + tcp[18:]

def address(name):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as of:
        of.bind((name, 0))
        return of.getsockname()[4]

def drawn(port):
    sizes, end = [], time.monotonic() + 4.5  # the kernel repeats after 1 and 3 s
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as wire:
        wire.bind(("d1", 0))
        wire.send(address("d0") + address("d1") + b"\\x08\\x00" + syn("10.9.0.9", "10.9.0.1", port))
        while (left := end - time.monotonic()) > 0:
            if select.select([wire], [], [], left)[0]:
                packet = wire.recv(2000)[14:]
                if packet[9] == 6 and packet[16:20] == socket.inet_aton("10.9.0.9") and packet[33] & 0x12 == 0x12:
                    sizes.append(struct.unpack("!H", packet[2:4])[0])
    return sizes

async def handler(_stream):
    pass

async def main():
    subprocess.run("ip neigh add 10.9.0.9 lladdr 02:00:00:00:00:09 dev d0".split(), check=True)
    ours = SharedPortTCP().create_listener(handler)
    await ours.listen(Multiaddr("/ip4/10.9.0.1/tcp/4001"))
    with socket.create_server(("10.9.0.1", 4002)):
        for name, port in (("ours", 4001), ("plain", 4002)):
            print("drawn", name, *drawn(port), flush=True)
    await ours.close()

trio.run(main)
"""


@pytest.mark.live
@pytest.mark.slow
def test_one_syn_draws_two_answers(in_own_network: Any) -> None:
    done = in_own_network(PROGRAM)
    rows = {line.split()[1]: [int(size) for size in line.split()[2:]] for line in done.stdout.splitlines() if "drawn" in line}
    print("a SYN of 40 bytes draws", rows, done.stderr[-3000:])
    assert rows["plain"] == [44, 44, 44], done.stderr
    assert rows["ours"] == [44, 44], done.stderr
