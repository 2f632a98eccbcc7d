"""Which answers say the same: the one conservative normaliser, and classes of equal answers. Decides no winner."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from protocol.wire.ids import Hash, sha256

_BLANK = re.compile(r"[ \t\r\n\f\v]+")
_UNICODE = unicodedata.ucd_3_2_0

MAX_COMPOSED_CHARS = 4_096
"""A longer answer that is not ASCII is equal only to the same characters."""

MAX_MARKS = 30
"""In a row, as in Unicode's stream-safe text (UAX #15); no language has more."""

_MARKS_TOO = "\uff9e\uff9f"
"""The only other characters that begin with a mark once they are taken apart."""

_RAISED = re.compile("[\u00b2\u00b3\u00b9\u2070-\u207f]+")
_NUMBER = re.compile(r"([+-]?)([0-9]+)(?:\.([0-9]*))?")


@dataclass(frozen=True, slots=True)
class AnswerClass:
    """Equal answers. `text` is that of the lowest seat, `address` its hash; `weight_micro` the sum of its voters' weights, in
    millionths of a vote."""

    key: str
    text: str
    seats: tuple[int, ...]
    weight_micro: int
    address: Hash = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", sha256(self.text.encode()))


def normalise(answer: str) -> str:
    """The key under which answers are equal: NFKC, trimmed, blanks collapsed; a lone decimal number without idle signs and zeros.

    Case is kept: in code, chemistry and identifiers it carries meaning. Raised digits and signs are powers: NFKC alone would make
    two to the third 23.

    Unicode 3.2 (RFC 3454's frozen table) is used because it is the same in every Python: two peers must never disagree.
    """
    text = _BLANK.sub(" ", answer).strip(" ")
    if not text.isascii():
        text = _BLANK.sub(" ", _composed(text)).strip(" ")
    number = _NUMBER.fullmatch(text)
    if number is None:
        return text
    sign, whole, fraction = number.group(1), number.group(2).lstrip("0") or "0", (number.group(3) or "").rstrip("0")
    digits = f"{whole}.{fraction}" if fraction else whole
    return f"-{digits}" if sign == "-" and digits != "0" else digits


def _composed(text: str) -> str:
    """NFKC of `text`, or `text` itself where that would take long: marks are put in order in a time that grows with the square of
    how many follow each other, 64 KiB of them in seconds, and one character becomes up to 18."""
    if len(text) > MAX_COMPOSED_CHARS:
        return text
    run = 0
    for character in text:
        run = run + 1 if _UNICODE.category(character)[0] == "M" or character in _MARKS_TOO else 0
        if run > MAX_MARKS:
            return text
    return _UNICODE.normalize("NFKC", _RAISED.sub(_power, text))


def _power(raised: re.Match[str]) -> str:
    return "^" + raised.group().replace("\u207b", "-")


def tie_break(round_id: Hash, key: str) -> Hash:
    """Orders classes that nothing else orders: lower first. No author can aim at it without changing its answer."""
    return sha256(b"swarmd/1/round/tie", round_id, key.encode())


def classes_of(
    round_id: Hash, answers: Mapping[int, str], weights_micro: Mapping[int, int], key_of: Callable[[str], str] = normalise
) -> tuple[AnswerClass, ...]:
    """Classes of the answers by seat, those of one key together, the heaviest first; ties by `tie_break`."""
    members: dict[str, list[int]] = {}
    for seat in sorted(answers):
        members.setdefault(key_of(answers[seat]), []).append(seat)
    found = [
        AnswerClass(key, answers[seats[0]], tuple(seats), sum(weights_micro[seat] for seat in seats))
        for key, seats in members.items()
    ]
    return tuple(sorted(found, key=lambda c: (-c.weight_micro, tie_break(round_id, c.key))))


def voices(weights_milli: Mapping[int, int], configurations: Mapping[int, bytes], one_voice: bool) -> dict[int, int]:
    """What each seat counts for, in millionths: its weight, shared by the present seats of its configuration if `one_voice`."""
    present = [configurations[seat] for seat in weights_milli]
    if not one_voice or len(set(present)) == len(present):
        return {seat: weight * 1000 for seat, weight in weights_milli.items()}
    seats = Counter(present)
    return {seat: weight * 1000 // seats[configurations[seat]] for seat, weight in weights_milli.items()}


def settled(classes: Sequence[AnswerClass], early_exit_margin: int) -> bool:
    """Whether votes already decide: one class, or a lead of `early_exit_margin` votes (of weight 1) where that is not 0."""
    if len(classes) < 2:
        return True
    return early_exit_margin > 0 and classes[0].weight_micro - classes[1].weight_micro >= early_exit_margin * 1_000_000
