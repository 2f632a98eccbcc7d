"""What `bench.claims` prints, and which of its figures miss their targets. Measures nothing."""

from typing import Any

from bench import claim_flood


def short_of(found: dict[str, Any]) -> list[str]:
    """Each figure that misses its target."""
    sync = found["sync"]
    rules = [
        (found["merge_share"] >= 0.8, f"merged {found['merge_share']:.0%} of the bare signature rate, target 80%"),
        (found["in_full_share"] >= 0.8,
         f"merged {found['in_full_share']:.0%} of the bare signature rate of claims in their envelopes, target 80%"),
        (found["score_us"] < 50, f"a score takes {found['score_us']:.1f} us, target 50"),
        *((share <= 0.5, f"a fresh node that probed {met} peers is within 5% only at {share:.0%} of all bytes, target 50%")
          for met, share in found["useful_at_bytes"].items()),
        *((share < 1, f"a fresh node that probed {met} peers is within 5% only once it has every claim")
          for met, share in found["useful_at"].items()),
        *((found[pull][late] <= 20, f"the loop was {found[pull][late]:.1f} ms late {at} while {who} pulled {what}, target 20")
          for pull, who, what in (("bulk", "a node", "10,000 claims in checkpoints"), ("fresh", "a fresh node", "all"))
          for late, at in (("stall_p99_ms", "at p99"), ("stall_ms", "at worst"))),
        (sync["10000"]["seconds"] <= 10, f"10,000 claims took {sync['10000']['seconds']:.1f} s, target 10"),
        (found["stall_p99_ms"] <= 20, f"the loop was {found['stall_p99_ms']:.1f} ms late at the 99th percentile, target 20"),
        (found["stall_ms"] <= 20, f"the loop was {found['stall_ms']:.1f} ms late at worst, target 20"),
        *((row["ratio"] <= 1.3, f"{n} missing claims took {row['ratio']:.2f} times their bytes, target 1.3")
          for n, row in sync.items()),
    ]  # fmt: skip
    return [sentence for met, sentence in rules if not met] + claim_flood.short_of(found["flood"])


def as_table(found: dict[str, Any]) -> str:
    rival = found["pycrdt"] or {}
    lines = [
        f"{found['claims']} claims of {found['claim_bytes']} bytes, {found['issuers']} issuers, {found['logs']} logs",
        f"signatures checked, bare        {found['verify_per_s']:8.0f} /s   by libsodium, one core;"
        f" by OpenSSL: {found['verify_openssl_per_s']:.0f}",
        f"claims merged, all told         {found['merged_per_s']:8.0f} /s   {found['merge_share']:.0%} of bare (target 80%);"
        f" 10000 are missing, which come in checkpoints: {found['bulk']['signatures']} signatures,"
        f" {found['bulk']['cpu_us']:.0f} us of CPU a claim; loop late {found['bulk']['stall_p99_ms']:.1f} ms at p99,"
        f" {found['bulk']['stall_ms']:.1f} at most",
        f"the same in their envelopes     {found['in_full_per_s']:8.0f} /s   {found['in_full_share']:.0%} of bare (target"
        f" 80%), as peers of an older version give them: {found['in_full_signatures']} of"
        f" {found['sync']['10000']['claims']} signatures checked, the others by the hash chain of their log, up to one that was;"
        f" {found['cpu_us']:.0f} us of CPU a claim",
        f"claims that each come alone     {found['alone']['merged_per_s']:8.0f} /s   {found['alone']['merge_share']:.0%} of bare:"
        f" no other claim vouches for them, {found['alone']['signatures']} of {found['alone']['claims']} signatures checked;"
        f" {found['alone']['cpu_us']:.0f} us of CPU a claim",
        f"loop late meanwhile             {found['stall_p99_ms']:8.1f} ms at p99, {found['stall_ms']:.1f} at most",
        f"score read at {found['claims']}          {found['score_us']:8.1f} us median (target 50);"
        f" {found['score_uncached_us']:.0f} us where the evidence of some hundred witnesses is weighed anew",
        *(
            f"fresh, probed {met:>2} peers itself     {found['useful_at_bytes'][met]:8.0%} of the bytes of all claims in full"
            f" arrived (target 50%), {share:.0%} of the claims (target: before all): within 5% of final from there on;"
            f" off by {', '.join(f'{off:.0%} at {at}' for at, off in found['off_at'][met].items())};"
            f" half of those that it {'probed' if int(met) else 'would ask'} from {found['known_at'][met]:.0%} on"
            for met, share in found["useful_at"].items()
        ),
        f"at best, by chance of sampling  {found['sampling_limit'][0]:9.0%} of the claims: from there on plain shares of right"
        f" answers, as many of each peer and skill in a random order, are within 5%;"
        f" {found['sampling_limit'][1]:.0%} for who knew beforehand of whom to take how many",
        f"fresh, pulls all in checkpoints  {found['fresh']['seconds']:7.1f} s  "
        f" {found['fresh']['merged_per_s']:.0f} claims a second, {found['fresh']['merge_share']:.0%} of the bare rate;"
        f" {found['fresh']['bytes'] / 1e6:.1f} MB,"
        f" {found['fresh']['share']:.0%} of all claims in full, {found['fresh']['signatures']} signatures checked for"
        f" {found['fresh']['claims']} claims; {found['fresh']['cpu_us']:.0f} us of CPU a claim; loop late"
        f" {found['fresh']['stall_p99_ms']:.1f} ms at p99, {found['fresh']['stall_ms']:.1f} at most; in full, at the rate above:"
        f" {found['fresh']['full_seconds']:.1f} s",
        f"compacted                       {found['compacted']['claim_bytes']:8.0f} bytes a claim in a checkpoint,"
        f" {found['compacted']['mean_bytes']:.0f} over all; memory, disk {found['compacted']['memory_bytes'] / 2**20:.1f} MiB,"
        f" {found['compacted']['disk_bytes'] / 2**20:.1f} MiB; loaded in {found['compacted']['load_seconds']:.1f} s;"
        f" {found['compacted']['checkpoint_us']:.0f} us to make one",
        claim_flood.as_line(found["flood"]),
        f"memory, disk                    {found['memory_bytes'] / 2**20:8.1f} MiB, {found['disk_bytes'] / 2**20:.1f} MiB;"
        f" loaded in {found['load_seconds']:.1f} s",
        "difference   bytes / missing bytes   seconds   pycrdt: bytes   seconds",
    ]
    for n, row in found["sync"].items():
        other = rival.get("sync", {}).get(n)
        beside_it = f"{other['bytes']:13d} {other['seconds']:9.3f}" if other else "not installed"
        share = f"{row['bytes']} / {row['missing_bytes']} = {row['ratio']:.2f}"
        lines.append(f"{n:>10}   {share:>26} {row['seconds']:9.2f}   {beside_it}")
    if rival.get("merged_per_s"):
        lines.append(f"pycrdt merges {rival['merged_per_s']:.0f} single updates a second.")
    lines.append(
        "Ours: every claim checked, by its signature or as a link of a signed chain, forks proved, nothing forged or rolled"
        " back, on disk.\n"
        "pycrdt: convergence among trusted peers; no signatures, no authorship, no bound on what one peer adds, in memory."
    )
    return "\n".join(lines)
