"""What each type of NAT does, as nftables rules of a router whose outside is wan0 and whose inside is lan0. Runs nothing."""

TYPES = ("open", "full", "addr", "port", "portnp", "sym", "cgn", "udpblk")
"""open: none. full, addr, port: full cone, address and port restricted, all keeping the port. portnp: another port, the same for
all. sym: another port for each destination. cgn: port behind a carrier's portnp. udpblk: port, and no UDP at all."""

EXTRA_TYPES = ("symseq",)
"""symseq: symmetric, counting its ports up."""


_COUNTED = range(40000, 44096)


def _counted() -> str:
    # By a map, since the number itself would be taken in the machine's order of bytes and count in steps of 256.
    return ", ".join(f"{number} : {port}" for number, port in enumerate(_COUNTED))


def rules(kind: str, outside: str, *, resets: bool = False) -> str:
    """The table for a NAT of `kind` whose outside address is `outside`; `resets` answers unsolicited SYNs by RST.

    Unsolicited packets are dropped in the input chain as home routers do: Linux would otherwise confirm an entry for them and
    give the punch another port.
    """
    source = {
        "sym": "masquerade fully-random",
        "portnp": f"meta l4proto {{tcp,udp}} snat to {outside}:40000-59999",
        "symseq": f"meta l4proto {{tcp,udp}} snat to {outside}:numgen inc mod {len(_COUNTED)} map {{ {_counted()} }}",
    }.get(kind, "masquerade")
    inward = {
        "full": "iifname wan0 meta l4proto {tcp,udp} dnat to meta l4proto . th dport map @bind",
        "addr": (
            "iifname wan0 meta l4proto {tcp,udp} meta l4proto . th dport . ip saddr @seen "
            "dnat to meta l4proto . th dport map @bind"
        ),
    }.get(kind, "")
    unsolicited = "reject with tcp reset" if resets else "drop"
    return f"""table ip lab {{
 set seen {{ type inet_proto . inet_service . ipv4_addr; flags dynamic,timeout; timeout 300s; }}
 map bind {{ type inet_proto . inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 300s; }}
 chain pre {{ type nat hook prerouting priority -100; {inward}
 }}
 chain post {{ type nat hook postrouting priority 100; oifname wan0 {source}
 }}
 chain through {{ type filter hook forward priority 0; policy drop;
  {"meta l4proto udp drop" if kind == "udpblk" else ""}
  iifname lan0 meta l4proto {{tcp,udp}} update @bind {{ meta l4proto . th sport : ip saddr . th sport }} \
update @seen {{ meta l4proto . th sport . ip daddr }}
  iifname lan0 accept
  ct state established,related accept
  ct status dnat accept
 }}
 chain inp {{ type filter hook input priority 0; policy accept;
  iifname wan0 meta l4proto tcp ct state new {unsolicited}
  iifname wan0 ct state new drop
 }}
}}"""


IPV6_FIREWALL = """table ip6 lab {
 chain through { type filter hook forward priority 0; policy drop;
  iifname lan0 accept
  ct state established,related accept
  meta l4proto ipv6-icmp accept
 }
}"""
"""A home router's IPv6: no translation, nothing unsolicited comes in."""
