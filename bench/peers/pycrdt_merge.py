"""The same exchange with pycrdt (Yjs): one array of byte strings, replicas that differ at its end. Prints one line of JSON.

Runs in an environment of its own: `python pycrdt_merge.py CLAIMS BYTES DIFFERENCE...`.
"""

import json
import os
import sys
import time

from pycrdt import Array, Doc

CHUNK = 64


def main() -> None:
    count, size, differences = int(sys.argv[1]), int(sys.argv[2]), [int(arg) for arg in sys.argv[3:]]
    entries = [os.urandom(size // 2).hex() for _ in range(count)]
    full = Doc()
    log = full.get("claims", type=Array)
    behind, at = {}, 0
    marks = sorted({count - difference for difference in differences})
    for mark in [*marks, count]:
        while at < mark:
            step = min(mark, at + 1_000)
            log.extend(entries[at:step])
            at = step
        if mark != count:
            other = Doc()
            other.get("claims", type=Array)
            other.apply_update(full.get_update())
            behind[count - mark] = other
    rows = {}
    for difference in differences:
        other = behind[difference]
        begun = time.perf_counter()
        state = other.get_state()
        update = full.get_update(state)
        other.apply_update(update)
        rows[difference] = {"seconds": time.perf_counter() - begun, "bytes": len(state) + len(update)}
    single = Doc()
    updates = []
    single.observe(lambda event: updates.append(event.update))
    array = single.get("claims", type=Array)
    for entry in entries[:2_000]:
        array.append(entry)
    target = Doc()
    target.get("claims", type=Array)
    begun = time.perf_counter()
    for update in updates:
        target.apply_update(update)
    rate = len(updates) / (time.perf_counter() - begun)
    print(json.dumps({"merged_per_s": rate, "sync": rows}))


if __name__ == "__main__":
    main()
