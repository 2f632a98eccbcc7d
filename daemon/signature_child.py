"""The process that checks signatures while many come: jobs in, verdicts out. It ends with its standard input.

Imports the verdict alone: a small node pays for every module that it loads.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import BinaryIO

from protocol.wire.signature import SignatureJob, verify

READY = b"r"
"""What it says once, first."""

LENGTH = Struct("!I")
_JOB = Struct("!32s64sI")
"""A key, a signature, and the length of the message that follows."""

_NICENESS = 5
"""An engine on the same cores goes first."""


def pack(jobs: Sequence[SignatureJob]) -> bytes:
    """Jobs as `serve` reads them, behind their length in bytes."""
    packed = b"".join([_JOB.pack(job.key, job.signature, len(job.message)) + job.message for job in jobs])
    return LENGTH.pack(len(packed)) + packed


def unpack(packed: bytes) -> Iterator[SignatureJob]:
    """The jobs of one `pack`, without its length."""
    at = 0
    while at < len(packed):
        key, signature, length = _JOB.unpack_from(packed, at)
        at += _JOB.size
        yield SignatureJob(key, signature, packed[at : at + length])
        at += length


def serve(jobs: BinaryIO, verdicts: BinaryIO) -> None:
    """Answer each pack by how many jobs it had and a byte for each, 1 or 0, until the parent ends, by kill -9 too."""
    verdicts.write(READY)
    verdicts.flush()
    while len(head := jobs.read(LENGTH.size)) == LENGTH.size:
        packed = jobs.read(*LENGTH.unpack(head))
        found = bytes(verify(*job) for job in unpack(packed))
        verdicts.write(LENGTH.pack(len(found)) + found)
        verdicts.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, sys.stdout.buffer)
    os._exit(0)
