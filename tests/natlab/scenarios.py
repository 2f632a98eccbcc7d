"""`python -m tests.natlab.scenarios`: what a matrix of NAT pairs does not show, a row each, with real daemons."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from swarmd import ClientError
from tests import slow_engine
from tests.natlab.commands import add_skip, begin
from tests.natlab.gateways import why_no_gateway
from tests.natlab.house import MODEL, WORDS, House, until, wait
from tests.natlab.matrix import ANSWER, DIRECT, QUESTION, run_cell
from tests.natlab.namespaces import LabError
from tests.natlab.peers import PORT, Peer
from tests.natlab.topology import RELAYS, Lab

FAILOVER_SECONDS = 5.0
CHANGE_SECONDS = 10.0
SILENT_SECONDS = 40.0
NAT_FORGETS_SECONDS = 30


def served(asker: Peer) -> str:
    """The kind of path over which a right answer came, "" where none did."""
    for event in asker.client.ask(QUESTION, model=MODEL, timeout_s=20):
        if event.name == "result" and event.fields["answer"].strip() == ANSWER:
            return str(event.fields["path"])
    return ""


def directly(asker: Peer, server: Peer, seconds: float = 15.0) -> dict[str, Any]:
    """The path once it is direct, or what it is at the end."""
    until(lambda: asker.path_to(server.peer_id).get("kind") in DIRECT, seconds)
    return asker.path_to(server.peer_id)


def described(path: dict[str, Any]) -> str:
    took = path.get("relayed_ms")
    return f"{path.get('kind', 'no path')} {path.get('transport', '')}" + ("" if took is None else f" after {took:.0f} ms")


# ---- scenarios: each returns whether it went as it should, and what was seen


def relay_killed(house: House) -> tuple[bool, str]:
    """The relay that carries a stream is killed (-9) in the middle of it; two peers offer the model, all paths are relayed."""
    for name, number in (("A", 1), ("B", 11), ("C", 12)):
        house.site(name, "port", number)
    house.relay(*RELAYS)
    relayed = ("--set", "nat.punch=false")
    servers = [house.slow_server(name, *relayed).wait_api() for name in "BC"]
    asker = house.start("A", "--no-model", *house.joins(), *relayed).wait_api()
    for server in servers:
        wait("a path", lambda server=server: asker.path_to(server.peer_id), 30)
    wait("both offers", lambda: sum(row["name"] == "slow" for row in asker.client.models()), 30)
    heard, gaps, last, killed = "", [], time.monotonic(), ""
    for event in asker.client.ask("say it", model="slow", timeout_s=60):
        if event.name == "result":
            whole = "".join(slow_engine.words(WORDS))
            right = str(event.fields["answer"]).strip() == heard.strip() == whole.strip()
            outcomes = ", ".join(str(one["outcome"]) for one in event.fields["attempts"])
            worst = max(gaps)
            return right and worst < FAILOVER_SECONDS, (
                f"answer {'whole' if right else 'WRONG'}, longest silence {worst:.2f} s (limit {FAILOVER_SECONDS:g}), "
                f"attempts: {outcomes}"
            )
        if event.name == "token":
            gaps.append(time.monotonic() - last)
            last = time.monotonic()
            heard += str(event.fields["text"])
            if not killed and len(gaps) > 20:
                gaps.clear()
                busy = next((one for one in servers if one.client.status()["engine"]["busy"]), servers[0])
                killed = asker.path_to(busy.peer_id)["address"].split("/p2p/")[1].split("/")[0]
                next(one for one in house.relays if one.peer_id == killed).signal(signal.SIGKILL)
    return False, "the stream ended without a result"


def one_nat(house: House) -> tuple[bool, str]:
    """Two peers behind one NAT meet over their own network."""
    house.site("A", "port", 1)
    house.lab.add_neighbour("A", "B", 1)
    house.ending.callback(house.lab.spaces.remove, "B")
    house.relay(*RELAYS)
    asker, server = house.pair("--set", "lan.mdns=false")
    path, over = directly(asker, server), served(asker)
    return path.get("kind") in DIRECT and "/192.168.1." in path["address"] and bool(over), (
        f"{described(path)}, {path.get('address', '').split('/p2p')[0]}, {path.get('rtt_ms')} ms, served over {over or 'NOTHING'}"
    )


def silence(left: str, right: str) -> Callable[[House], tuple[bool, str]]:
    def run(house: House) -> tuple[bool, str]:
        for name, kind, number in (("A", left, 1), ("B", right, 11)):
            house.site(name, kind, number)
            seconds = str(NAT_FORGETS_SECONDS)
            for setting in ("udp_timeout", "udp_timeout_stream", "tcp_timeout_established"):
                house.lab.spaces.execute(f"H{name}", "sysctl", "-qw", f"net.netfilter.nf_conntrack_{setting}={seconds}")
        house.relay(*RELAYS)
        asker, server = house.pair()
        before = directly(asker, server)
        time.sleep(SILENT_SECONDS)
        after = asker.path_to(server.peer_id)
        held = before.get("kind") in DIRECT and after.get("age_s", 0) >= SILENT_SECONDS and after["kind"] == before["kind"]
        over = served(asker)
        return held and over in DIRECT, (
            f"{described(before)}; after {SILENT_SECONDS:g} s without a call the path is {after.get('age_s', 0):.0f} s old, "
            f"served over {over or 'NOTHING'}"
        )

    return run


def ipv6_only(house: House) -> tuple[bool, str]:
    """Two homes with IPv6 firewalls and no IPv4 at all."""
    addresses = house.lab.add_ipv6_relays()
    for name, number in (("A", 1), ("B", 11)):
        house.ending.callback(house.lab.remove, house.lab.add_ipv6(name, number))
    house.relay(*addresses)
    asker, server = house.pair(listen=f"/ip6/::/tcp/{PORT}")
    path = directly(asker, server)
    over = served(asker)
    return path.get("kind") in DIRECT and over in DIRECT, f"{described(path)}, served over {over or 'NOTHING'}"


def network_change(house: House) -> tuple[bool, str]:
    """A box gets another address while it is connected."""
    house.site("A", "port", 1)
    house.site("B", "port", 11)
    house.relay(*RELAYS)
    asker, server = house.pair()
    before = directly(asker, server)
    for change in (("del", "192.168.1.2/24"), ("add", "192.168.1.77/24")):
        house.lab.spaces.execute("A", "ip", "addr", change[0], change[1], "dev", "eth0")
    house.lab.spaces.route("A", "192.168.1.1")
    began = time.monotonic()
    wait("notice", lambda: asker.client.netcheck()["network_changes"], 30)
    noticed = time.monotonic() - began
    over = wait("answer", lambda: served(asker), 40)
    answered = time.monotonic() - began
    path = directly(asker, server)
    return noticed < CHANGE_SECONDS and path.get("kind") in DIRECT, (
        f"{described(before)}; noticed after {noticed:.1f} s, served over {over} after {answered:.1f} s, then {described(path)}"
    )


def one_relay(house: House) -> tuple[bool, str]:
    """The only bootstrap is the only relay, on one address and port."""
    house.site("A", "port", 1)
    house.site("B", "portnp", 11)
    house.relay(RELAYS[0])
    asker, server = house.pair()
    held = [relay["held"] for relay in asker.client.netcheck()["relays"]]
    path = directly(asker, server)
    over = served(asker)
    return any(held) and path.get("kind") in DIRECT and bool(over), (
        f"{'reserved' if any(held) else 'NO RESERVATION'}, {described(path)}, served over {over or 'NOTHING'}"
    )


def only_443(house: House) -> tuple[bool, str]:
    """An office that lets nothing out but TCP to port 443, where the relays listen; UDP and other ports are dropped."""
    house.site("A", "port", 1)
    house.site("B", "port", 11)
    house.lab.restrict("A", 443)
    house.relay(*RELAYS, port=443)
    asker, server = house.pair()
    known, over = asker.client.netcheck(), served(asker)
    back = asker.path_to(server.peer_id)
    return over == back.get("kind") == "relayed" and known["udp"] is not True, (
        f"reserved at {sum(relay['held'] for relay in known['relays'])} relays, {described(back)}, "
        f"served over {over or 'NOTHING'}"
    )


def sequential(house: House) -> tuple[bool, str]:
    """Two symmetric NATs that count their ports up."""
    house.site("A", "symseq", 1)
    house.site("B", "symseq", 11)
    house.relay(*RELAYS)
    asker, server = house.pair()
    path = directly(asker, server, 20)
    known = asker.client.netcheck()
    over = served(asker)
    return path.get("kind") in DIRECT and bool(over), (
        f"{described(path)}, mapping TCP {known['mapping_tcp']}, UDP {known['mapping_udp']}, served over {over or 'NOTHING'}"
    )


def mapped(house: House) -> tuple[bool, str]:
    """Two random symmetric NATs, which nothing punches; one gateway speaks PCP, NAT-PMP and UPnP (miniupnpd)."""
    if (missing := why_no_gateway()) is not None:
        raise LabError(missing)
    house.site("A", "sym", 1)
    house.site("B", "sym", 11)
    gateway = house.gateway("B", 11, "44.1.1.31")
    house.relay(*RELAYS)
    server = house.start("B", "--model", MODEL, *house.joins()).wait_api()
    began = time.monotonic()
    until(lambda: server.client.netcheck()["port_mapping"]["state"] == "active", 20)
    known = server.client.netcheck()["port_mapping"]
    took = time.monotonic() - began
    asker = house.start("A", "--no-model", *house.joins()).wait_api()
    wait("a path", lambda: asker.path_to(server.peer_id), 30)
    wait("an offer", lambda: any(row["name"] == MODEL for row in asker.client.models()), 30)
    path, over = directly(asker, server), served(asker)
    theirs = server.path_to(asker.peer_id).get("kind")
    server.end()
    house.peers.remove(server)
    left = gateway.granted()
    fine = known["state"] == "active" and path.get("kind") in DIRECT and over in DIRECT and not left
    return fine, (
        f"{known['state']} by {known['method']} after {took:.1f} s, proved {'+'.join(known['proved'])}; {described(path)} "
        f"({theirs} for the server), served over {over or 'NOTHING'}; at its end {len(left)} mappings are left"
    )


def gateway_restarted(house: House) -> tuple[bool, str]:
    """The gateway loses power, and with it what it granted; a box behind a random symmetric NAT."""
    if (missing := why_no_gateway()) is not None:
        raise LabError(missing)
    house.site("A", "sym", 1)
    gateway = house.gateway("A", 1, "44.1.1.21")
    house.relay(*RELAYS)
    peer = house.start("A", "--no-model", *house.joins()).wait_api()
    both = ["tcp", "udp"]
    wait("mapping", lambda: sorted(peer.client.netcheck()["port_mapping"]["proved"]) == both, 30)
    before = len(gateway.granted())
    lost, began = len(gateway.restart()), time.monotonic()
    until(lambda: len(gateway.granted()) == before, 60)
    took, after = time.monotonic() - began, len(gateway.granted())
    proved = sorted(peer.client.netcheck()["port_mapping"]["proved"])
    return lost == 0 and after == before == len(both) and proved == both, (
        f"{before} mappings, {lost} left by the restart, {after} again after {took:.1f} s, proved {'+'.join(proved) or 'NOTHING'}"
    )


def double_nat(house: House) -> tuple[bool, str]:
    """The home gateway grants ports of an outside address that is not where peers see us, as a carrier's NAT follows.

    miniupnpd 2.3.1 grants nothing at all on a private outside address, so it is told a public one.
    """
    if (missing := why_no_gateway()) is not None:
        raise LabError(missing)
    house.site("A", "cgn", 1)
    gateway = house.gateway("A", 1, "44.1.1.99")
    house.relay(*RELAYS)
    peer = house.start("A", "--no-model", *house.joins()).wait_api()
    until(lambda: peer.client.netcheck()["port_mapping"]["state"] == "double_nat", 20)
    known = peer.client.netcheck()["port_mapping"]
    told = [address for address in peer.client.status()["addresses"] if "/44.1.1.99/" in address]
    state, left = known["state"], len(gateway.granted())
    return state == "double_nat" and not told and not left, f"{state} ({known['reason']}), {left} mappings are left"


def bad_line(left: str, right: str, rtt: float = 0.2, loss: float = 0.05) -> Callable[[House], tuple[bool, str]]:
    def run(house: House) -> tuple[bool, str]:
        switch = house.lab.switch
        before = switch.delay, switch.loss
        switch.delay, switch.loss = rtt / 2, loss
        try:
            cell = run_cell(house.lab, left, right, 25.0, kept=house.base)
        finally:
            switch.delay, switch.loss = before
        return cell.direct and cell.served, cell.told()

    return run


def resets(left: str, right: str) -> Callable[[House], tuple[bool, str]]:
    def run(house: House) -> tuple[bool, str]:
        house.lab.resets = True
        try:
            cell = run_cell(house.lab, left, right, kept=house.base)
        finally:
            house.lab.resets = False
        return cell.direct and cell.served, cell.told()

    return run


SCENARIOS: dict[str, Callable[[House], tuple[bool, str]]] = {
    "relay killed in mid-stream": relay_killed,
    "two peers behind one NAT": one_nat,
    "NATs that forget after 30 s, TCP": silence("port", "portnp"),
    "NATs that forget after 30 s, UDP": silence("port", "sym"),
    "IPv6 only": ipv6_only,
    "network change": network_change,
    "bootstrap and relay on one address": one_relay,
    "nothing out but TCP to port 443": only_443,
    "sequential symmetric pair": sequential,
    "port mapping (miniupnpd), sym-sym": mapped,
    "port mapping, gateway restarted": gateway_restarted,
    "port mapping behind a carrier's NAT": double_nat,
    "200 ms, 5% loss: port-port": bad_line("port", "port"),
    "200 ms, 5% loss: portnp-cgn": bad_line("portnp", "cgn"),
    "200 ms, 5% loss: port-sym": bad_line("port", "sym"),
    "200 ms, 5% loss: full-sym": bad_line("full", "sym"),
    "RST to unsolicited SYNs: port-port": resets("port", "port"),
    "RST to unsolicited SYNs: portnp-cgn": resets("portnp", "cgn"),
    "RST to unsolicited SYNs: port-sym": resets("port", "sym"),
    "RST to unsolicited SYNs: addr-portnp": resets("addr", "portnp"),
}


def chosen(wanted: str | None) -> Iterator[str]:
    return (name for name in SCENARIOS if wanted is None or wanted.lower() in name.lower())


def play(lab: Lab, scenario: Callable[[House], tuple[bool, str]], kept: Path | None) -> tuple[bool, str]:
    """Run one; its logs go to `kept`."""
    with House(lab, kept) as house:
        try:
            return scenario(house)
        except (LabError, ClientError, OSError, KeyError) as error:
            return False, f"{type(error).__name__}: {str(error)[-200:]}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="natlab.scenarios", description=__doc__)
    parser.add_argument("--only", help="those whose name has this in it")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--check", action="store_true", help="exit with 1 where one went wrong")
    parser.add_argument("--keep", type=Path, help="have the daemons log each dial, and copy that to this folder")
    add_skip(parser)
    options = parser.parse_args()
    begin(options)
    wrong = 0
    with Lab() as lab:
        lab.log_level = "debug" if options.keep else "info"
        for name in chosen(options.only):
            began = time.monotonic()
            kept = options.keep / name.replace(" ", "_") if options.keep else None
            right, seen = lab.undisturbed(name, partial(play, lab, SCENARIOS[name], kept))
            wrong += not right
            row = {"scenario": name, "right": right, "seen": seen, "seconds": round(time.monotonic() - began, 1)}
            print(json.dumps(row) if options.json else f"{name:36} {'as it should' if right else 'WRONG':12} {seen}", flush=True)
    return 1 if wrong and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
