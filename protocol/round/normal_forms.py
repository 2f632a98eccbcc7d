"""Under which key an answer is equal to others, by the kind of answer that a question calls for. Decides no winner.

Conservative: what does not wholly match its kind keeps the exact key. Only ASCII is folded and only a frozen Unicode table is
used, for two peers must never disagree. Patterns are matched against short texts, or take a time in proportion to the text (a
fence), so no author can make them slow.
"""

import re

from protocol.job import Job
from protocol.round.classes import normalise
from protocol.round.messages import AnswerKind
from protocol.round.quantities import number_key
from protocol.skills import GENERAL, broader, last_said, skill_of

MAX_SHORT_CHARS = 200
"""A longer number, choice or short text is an explanation: it keeps the exact key."""

MIN_OPTIONS = 2

_QUOTES = "\"'`\u2018\u2019\u201c\u201d"

_POINTER = re.compile(
    r"(?:(?:so|thus|hence|therefore),? )?"
    r"(?:(?:the |my )?(?:final |correct )?(?:answer|option|choice|result|sum|total)(?: is:| is|:) ?|[a-z] ?= ?|= ?)",
    re.ASCII | re.IGNORECASE,
)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_LETTER = re.compile(r"(?:[Oo]ption |[Cc]hoice |[Aa]nswer )?(?:\(?([A-Za-z])\)?[.:)]?|\(?([A-Z])[.:)] .*)", re.DOTALL)
_FENCED = re.compile(r"```[A-Za-z0-9+#_-]{0,20}[ \t]{0,20}\n(.*?)\n?```", re.DOTALL)
_BRIEF = re.compile(
    r"^\s{0,8}(?:who|whose|whom|where|when|which|name (?:the|a|an|one)|in wh(?:at|ich)|what(?:'s| is| was| are| were) the "
    r"(?:name|capital|title|symbol|colou?r|currency|language|surname|last name|first name))\b"
    r"|\b(?:yes or no|true or false|(?:one|a single) (?:word|name)|only (?:the|with the) (?:word|name|answer))\b",
    re.ASCII | re.IGNORECASE,
)
"""Questions that a few words answer."""

_OPTION = re.compile(r"^\s{0,8}\(?([A-J])[.:)] ", re.MULTILINE)


def normal_form(answer: str, kind: AnswerKind) -> str:
    """The key of `answer` among answers of this kind."""
    exact = normalise(answer)
    if kind == "code":
        return _code(answer)
    if kind == "exact" or len(exact) > MAX_SHORT_CHARS:
        return exact
    bare = _bare(exact)
    if kind == "number":
        number = number_key(bare)
        return exact if number is None else number
    if kind == "choice":
        letter = _LETTER.fullmatch(bare)
        return exact if letter is None else (letter.group(1) or letter.group(2)).upper()
    return "".join(c.lower() if c.isascii() else c for c in bare).strip(_QUOTES) or exact


def kind_of(job: Job) -> AnswerKind:
    """What the last thing that the user said calls for: a choice where it lists options; by its topic code, or a number, perhaps
    of units; a short text where it asks for a name or a truth value; else only equal words are equal (as in string tasks, where
    case counts).
    """
    said = last_said(job)[-4_000:]
    if len(set(_OPTION.findall(said))) >= MIN_OPTIONS:
        return "choice"
    topic = broader(skill_of(job))
    if topic == "code":
        return "code"
    if topic in ("arithmetic", "unit"):
        return "number"
    return "short" if topic == "logic" or (topic == GENERAL and _BRIEF.search(said[:MAX_SHORT_CHARS])) else "exact"


def _bare(text: str) -> str:
    """Without what only points at the answer: emphasis, a box, "the answer is", a full stop."""
    boxed = _BOXED.search(text)
    if boxed is not None:
        text = boxed.group(1)
    text = _undressed(text.replace("**", ""))
    pointer = _POINTER.match(text)
    if pointer is not None and pointer.end() < len(text):
        text = text[pointer.end() :]
    return _undressed(_undressed(text).removesuffix("."))


def _undressed(text: str) -> str:
    """Without what marks it as a formula."""
    return text.strip(" $`").removeprefix(r"\(").removesuffix(r"\)").strip(" $`")


def _code(answer: str) -> str:
    """The fenced block where there is just one, else all: no blanks at the ends of lines, no empty lines around; indents stay."""
    blocks = _FENCED.findall(answer.replace("\r\n", "\n"))
    text = blocks[0] if len(blocks) == 1 else answer.replace("\r\n", "\n")
    return "\n".join(line.rstrip(" \t") for line in text.split("\n")).strip("\n")
