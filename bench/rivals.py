"""What swarmd is measured against, and the Python that runs each rival: in an environment of its own, never in ours."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from bench.loads import Kind


@dataclass(frozen=True, slots=True)
class Rival:
    """`requirements` empty: it runs in our own environment. `alone` is installed without what it asks for.

    `lacks` names the loads that it does not run.
    """

    name: str
    title: str
    module: str
    requirements: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    lacks: tuple[Kind, ...] = ()


RIVALS = {
    rival.name: rival
    for rival in (
        Rival("lattica", "Lattica 1.0.21", "bench.peers.lattica", ("lattica==1.0.21",)),
        Rival(
            "hivemind", "hivemind 1.1.12", "bench.peers.hivemind",
            ("protobuf>=5,<6", "base58", "cryptography", "py-multihash", "varint", "pyyaml", "msgpack", "multiaddr", "uvloop"),
            ("hivemind==1.1.12",), (Kind.PUSH, Kind.ITEMS),
        ),
        Rival("stock", "stock py-libp2p streams", "bench.peers.stock"),
        Rival("tcp", "plain TCP, same cipher (the limit)", "bench.peers.tcp"),
    )
}  # fmt: skip


def environment(rival: Rival) -> str:
    """The Python that runs `rival`: ours, or one in the user's cache folder, made now where it is missing."""
    if not rival.requirements:
        return sys.executable
    folder = user_cache_path("swarmd-bench") / (rival.alone or rival.requirements)[0].replace("==", "-")
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.exists():
        print(f"making an environment for {rival.title} in {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        _install(python, *rival.requirements)
        if rival.alone:
            _install(python, "--no-deps", *rival.alone)
        done.touch()
    return str(python)


def _install(python: Path, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *arguments], check=True)
