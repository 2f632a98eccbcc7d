"""How a side talks with the benchmark: orders as JSON lines on standard input, outcomes on standard output. Measures nothing.

Whatever else a library prints goes to standard error. Standard library only: rivals run it in their own environments.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from bench.loads import BY_NAME, Load
from bench.peers.measure import Measured


@dataclass(frozen=True, slots=True)
class Order:
    """Run `load` for `seconds`."""

    load: Load
    seconds: float


class Program:
    """One process of a side. `address` is the server to call; "" in the server itself."""

    def __init__(self) -> None:
        self.address = sys.argv[1] if len(sys.argv) > 1 else ""
        self._out: TextIO = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, **fields: Any) -> None:
        """One line to the benchmark: `address` from a server, `ready` from a caller, `Measured` per order."""
        self._out.write(json.dumps(fields) + "\n")
        self._out.flush()

    def say_measured(self, measured: Measured) -> None:
        """The outcome of an order."""
        self.say(**asdict(measured))

    def next_order(self) -> Order | None:
        """Wait for the next order; None once the benchmark has gone or is done."""
        line = sys.stdin.readline()
        if not line:
            return None
        order = json.loads(line)
        return Order(BY_NAME[order["load"]], order["seconds"])
