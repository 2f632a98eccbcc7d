"""Decides which topic a question belongs to, by its words alone. Must not answer it, and must not take longer for a longer text.

The topic is what claims name as their skill: `arithmetic` says how well a peer answers such questions, and `judge.arithmetic` how
well it judges answers to them. A wrong topic costs evidence, never safety: it only says where an observation is filed.
"""

import re
from collections.abc import Mapping

from protocol.job import Job, Role

GENERAL = "general"
TOPICS = ("arithmetic", "logic", "string", "unit", "code", GENERAL)

TOPIC_OF_TOY: Mapping[str, str] = {
    "add": "arithmetic",
    "mod": "arithmetic",
    "rev": "string",
    "sort": "string",
    "bool": "logic",
    "conv": "unit",
}
"""The skills that the shipped models speak (models/README.md), and the topic that each is a part of."""

JUDGING = "judge."
"""In front of a topic: judging answers to its questions, as opposed to answering them."""

FAVOURED = "judge.first."
"""In front of a topic: judging pairs that hold the answer which the judge puts first."""

_TOY = re.compile(
    r"\s*(?:(add|mod) [0-9]{1,6} [0-9]{1,6}|(rev|sort) [a-z]{1,32}|(bool) [xy!()&|^]{1,64}|(conv) [0-9]{1,6} [a-z]{1,8})\s*"
)

_READ_CHARS = 2_000
"""Of a long question, so much of its start and so much of its end: that is where the task is stated."""

_MAX_CUES = 64
"""Words counted for one topic."""

_UNIT = (
    r"(?:kilo|centi|milli|deci)?(?:met(?:er|re)|lit(?:er|re)|gram)s?|miles?|feet|foot|inch(?:es)?|yards?|ounces?|pounds?|gallons?|pints?"
    r"|kg|km|cm|mm|lbs?|minutes?|hours?|seconds?|days?|weeks?|celsius|fahrenheit|kelvin|tonnes?|tons?|dozens?|stones?|furlongs?|fathoms?"
)

# Each match is one cue; the topic with most cues has the question, of equal ones the first. No pattern repeats a repetition.
_CUES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "code",
        re.compile(
            r"```|\b(?:def|class|import|return|print|lambda|elif)\b(?=[^.?!\n]{0,40}[(:=])|\brange\(|\blen\(|=>|::"
            r"|\bfor \w{1,20} in\b"
            r"|\b(?:python|javascript|typescript|java|rust|golang|c\+\+|sql|bash|regex|function|compile[rsd]?|algorithm|snippet"
            r"|programs?|code|script|stack trace|unit tests?|refactor|debug|list comprehension|expression evaluates?)\b"
            r"|\bselect\b[^.?!\n]{1,80}\bfrom\b"
        ),
    ),
    (
        "unit",
        re.compile(rf"\b(?:convert|conversion)\b|\bhow many (?:{_UNIT})\b|[0-9] ?(?:{_UNIT})\b|\b(?:to|in|into) (?:{_UNIT})\b"),
    ),
    (
        "string",
        re.compile(
            r"\b(?:revers(?:e|ed|ing)|backwards|spell(?:ed|ing)?|letters?|characters?|vowels?|consonants?|palindromes?|anagrams?"
            r"|alphabetical(?:ly)?|alphabet|upper ?case|lower ?case|capital letters?|substring|the words? [\"'“`])\b"
        ),
    ),
    (
        "logic",
        re.compile(
            r"\b(?:true or false|truth (?:table|value)|boolean|logical(?:ly)?|implies|premises?|syllogism"
            r"|valid argument|if and only if|knights?|knaves?|liars?|follows? (?:from|that)|must be true"
            r"|every \w{1,20} is|no \w{1,20} (?:is|are)|all \w{1,20} are"
            r"|not both|xor|taller than|older than|to the (?:left|right) of)\b"
        ),
    ),
    (
        "arithmetic",
        re.compile(
            r"[0-9] ?(?:[-+*/\u00d7\u00f7^%]|\*\*) ?\(?[0-9]|\b(?:plus|minus|[0-9]{1,9} times|times [0-9]{1,9}|multipl(?:y|ied)"
            r"|divid(?:e|ed)|remainder|modulo|mod|sum|product|differences?|subtract(?:ed)?|quotient|squared?|cubed?|percent(?:age)?|average|factorial|prime|divisible"
            r"|integers?|how much|how many|add(?:ed)? (?:[0-9]{1,9}|to|up|together)|calculate|compute|equation)\b|[0-9] ?%"
        ),
    ),
)


def skill_of(job: Job) -> str:
    """The topic of the last thing that the user said: a toy skill, one of TOPICS, "general" where nothing fits."""
    return skill_of_text(last_said(job))


def last_said(job: Job) -> str:
    """The last thing that the user said, or anybody where the user said nothing."""
    return next((turn.content for turn in reversed(job.turns) if turn.role is Role.USER), job.turns[-1].content)


def skill_of_text(question: str) -> str:
    """As `skill_of`, of a question that stands alone."""
    if toy := _TOY.fullmatch(question[:200]):
        return next(name for name in toy.groups() if name)
    long = len(question) > 2 * _READ_CHARS
    read = (f"{question[:_READ_CHARS]}\n{question[-_READ_CHARS:]}" if long else question).lower()
    counts = {topic: _count(cues, read) for topic, cues in _CUES}
    best = max(counts, key=lambda topic: counts[topic])  # the first of equal ones
    return best if counts[best] else GENERAL


def judging(topic: str) -> str:
    """The skill of judging answers to questions of `topic`."""
    return f"{JUDGING}{topic}"


def favoured(topic: str) -> str:
    """The skill of judging pairs of answers to questions of `topic` that hold what the judge puts first."""
    return f"{FAVOURED}{topic}"


def broader(skill: str) -> str:
    """The topic that a toy skill, or the judging of one, is a part of; any other skill itself."""
    start = next((prefix for prefix in (FAVOURED, JUDGING) if skill.startswith(prefix)), "")
    topic = skill.removeprefix(start)
    return f"{start}{TOPIC_OF_TOY.get(topic, topic)}"


def _count(cues: re.Pattern[str], text: str) -> int:
    found = 0
    for _ in cues.finditer(text):
        found += 1
        if found == _MAX_CUES:
            break
    return found
