"""What our own rounds on questions of known answer showed: how sure they were of what, and who erred with whom. Kept on disk.

It names blocks and gains for the next round's header; what a member's record is worth is the claims' business. To find them takes
some 60 ms with a full book: `save` does it, which runs in a thread, and whoever asks gets what was found last.
"""

from collections import deque
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog

from daemon.paths import write_durably
from protocol.round.blocks import Errors, blocks
from protocol.round.calibration import Trial, gain_milli, prior_of

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
        self._blocks: tuple[frozenset[str], ...] = ()
        self._is_saved = self._is_learned = True
        self._load()
        self._fit()

    def note(self, found: GoldRound) -> None:
        """Remember one round more."""
        self._rounds.append(found)
        self._is_saved = self._is_learned = False

    def gain_milli(self, arm: str) -> int:
        """The gain under which confidences of this arm were right; what is expected of the arm where nothing is known."""
        return self._gains.get(arm, prior_of(arm)[0])

    def blocks(self) -> tuple[frozenset[str], ...]:
        """Peers that err together far beyond chance."""
        return self._blocks

    def learn(self) -> None:
        """Learn from what is new. For a thread: a full book of seven members takes 70 ms."""
        if not self._is_learned:
            self._is_learned = True  # before they are copied: what is noted meanwhile is for the next time
            self._fit()

    def save(self) -> None:
        """Write what is new; a failure is logged and tried again with the next. For a thread."""
        if self._is_saved:
            return
        self._is_saved = True  # as above
        try:
            write_durably(self._path, msgspec.json.encode(tuple(self._rounds)))
        except OSError as error:
            self._is_saved = False
            log.error("what gold rounds showed could not be stored", file=str(self._path), reason=error.strerror)

    def _fit(self) -> None:
        rounds = tuple(self._rounds)
        arms = {arm for one in rounds for arm in one.trials}
        self._gains = {arm: gain_milli([one.trials[arm] for one in rounds if arm in one.trials], arm) for arm in arms}
        self._blocks = blocks(one.errors for one in rounds)

    def _load(self) -> None:
        try:
            with self._path.open("rb") as file:
                self._rounds.extend(msgspec.json.decode(file.read(MAX_FILE_BYTES), type=tuple[GoldRound, ...]))
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("what gold rounds showed cannot be read", file=str(self._path), reason=str(error))
