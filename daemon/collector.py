"""How often the interpreter looks for cyclic garbage while a daemon runs. Decides nothing else, and touches no object."""

import gc

YOUNG_OBJECTS = 10_000
"""Made and not yet freed, at which the young ones are looked at. Python's 700 are reached again and again while many calls run. A
look takes 0.15 ms, every tenth 1.3, to find next to nothing: what a call holds is freed by reference counts when it ends."""


def settle() -> None:
    """Once the daemon is built: what it has by now stays for good, and to look at that again stops everything for 70 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
