"""What our own rounds on questions of known answer showed: how sure they were of what, and who erred with whom. Kept on disk.

It names blocks and gains for the next round's header; what a member's record is worth is the claims' business.
"""

from collections import deque
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog

from daemon.paths import write_durably
from protocol.round.blocks import Errors, blocks
from protocol.round.calibration import Trial, gain_milli

log = structlog.get_logger("swarmd.rounds")

MAX_ROUNDS = 300
"""Rounds remembered, the newest; one of seven members takes half a KiB."""

MAX_FILE_BYTES = 8 << 20


class GoldRound(msgspec.Struct, frozen=True):
    """One round: by arm, what the winner led by and whether it was right; and the members' errors."""

    trials: Mapping[str, Trial]
    errors: Errors


class GoldBook:
    """The last rounds on known questions, in `path`. A file that cannot be read is left as it is until the next round."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rounds: deque[GoldRound] = deque(maxlen=MAX_ROUNDS)
        self._gains: dict[str, int] = {}
        self._blocks: tuple[frozenset[str], ...] | None = None
        self._is_saved = True
        self._load()

    def note(self, found: GoldRound) -> None:
        """Remember one round more."""
        self._rounds.append(found)
        self._gains.clear()
        self._blocks = None
        self._is_saved = False

    def gain_milli(self, arm: str) -> int:
        """The gain under which confidences of this arm were right; 1000 where nothing is known."""
        if arm not in self._gains:
            self._gains[arm] = gain_milli([one.trials[arm] for one in self._rounds if arm in one.trials])
        return self._gains[arm]

    def blocks(self) -> tuple[frozenset[str], ...]:
        """Peers that err together far beyond chance."""
        if self._blocks is None:
            self._blocks = blocks(one.errors for one in self._rounds)
        return self._blocks

    def save(self) -> None:
        """Write what is new; a failure is logged and tried again with the next."""
        if self._is_saved:
            return
        self._is_saved = True  # before they are copied: what is noted while they are written is for the next time
        try:
            write_durably(self._path, msgspec.json.encode(tuple(self._rounds)))
        except OSError as error:
            self._is_saved = False
            log.error("what gold rounds showed could not be stored", file=str(self._path), reason=error.strerror)

    def _load(self) -> None:
        try:
            with self._path.open("rb") as file:
                self._rounds.extend(msgspec.json.decode(file.read(MAX_FILE_BYTES), type=tuple[GoldRound, ...]))
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("what gold rounds showed cannot be read", file=str(self._path), reason=str(error))
