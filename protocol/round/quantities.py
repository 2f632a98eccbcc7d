"""One key for a number however it is written: signs, fractions, thousands, units. Decides no equality of what is no number.

Only what is exactly equal has one key: nothing is rounded, converted or guessed, and a number without its unit is another answer.
Numbers are short (`MAX_DIGITS`), so no author can make one slow.
"""

import re
from fractions import Fraction

from protocol.round.classes import normalise

MAX_DIGITS = 18
"""Of either part of a fraction; a longer one keeps its own form."""

_DIGITS = rf"[0-9]{{1,{MAX_DIGITS}}}"
_MINUS = re.compile("^[\u2212\u2013] ?")
"""The minus sign, and the dash that is written for it. Unicode's normal form knows neither as a hyphen."""

_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")
_BARE_FRACTION = re.compile(r"([+-]?)(\.[0-9]+)")
_FRACTION = re.compile(rf"([+-]?)(?:({_DIGITS}) ?/ ?({_DIGITS})|\\[dt]?frac\{{({_DIGITS})\}}\{{({_DIGITS})\}})")
_PLAIN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_QUANTITY = re.compile(r"([+-]?[0-9.,]*[0-9.](?: ?/ ?[0-9]+)?)(?: ([A-Za-z]{1,20})| ?(%|\u00b0? ?[A-Za-z]{1,20}))")
_FINITE = (2, 5)

_SPELLINGS = (
    "% percent", "km kms kilometer kilometre", "m meter metre", "cm centimeter centimetre", "mm millimeter millimetre",
    "mi mile", "yd yds yard", "ft foot feet", "in inch inches", "t tonne", "kg kgs kilogram kilogramme", "g gram gramme",
    "mg milligram milligramme", "lb lbs pound", "oz ounce", "l L liter litre", "ml mL milliliter millilitre", "gal gallon",
    "s sec second", "min minute", "h hr hrs hour", "d day", "wk wks week", "\u00b0C celsius", "\u00b0F fahrenheit",
)  # fmt: skip
_UNITS = {name: row.split()[0] for row in _SPELLINGS for word in row.split() for name in (word, *[word + "s"] * (len(word) > 2))}
"""Words of three letters and more also in the plural, and whatever their case; shorter ones as they are: 5 M is not 5 m."""


def number_key(text: str) -> str | None:
    """The key of a number, a fraction, or one of these with a unit; None for any other text."""
    text = _MINUS.sub("-", text)
    plain = _number(text)
    if plain is not None:
        return plain
    quantity = _QUANTITY.fullmatch(text)
    if quantity is None:
        return None
    number, word, unit = quantity.groups()
    name = (word or unit).replace(" ", "")
    key, known = _number(number), _UNITS.get(name) or (_UNITS.get(name.lower()) if len(name) > 2 else None)
    # An unknown word is a unit where a blank is before it; what only touches the number could be part of it.
    return None if key is None or not (known or word) else f"{key} {known or word}"


def _number(text: str) -> str | None:
    fraction = _FRACTION.fullmatch(text)
    if fraction is not None:
        sign, *parts = fraction.groups()
        above, below = (int(part) for part in parts if part is not None)
        return _shown(Fraction(above if sign != "-" else -above, below)) if below else None
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    bare = _BARE_FRACTION.fullmatch(text)
    if bare is not None:
        text = f"{bare.group(1)}0{bare.group(2)}"
    key = normalise(text)
    return key if _PLAIN.fullmatch(key) else None


def _shown(value: Fraction) -> str:
    """As a decimal number where it has an end, else as the reduced fraction."""
    left, places = value.denominator, 0
    for prime in _FINITE:
        power = 0
        while left % prime == 0:
            left //= prime
            power += 1
        places = max(places, power)
    if left > 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return normalise(f"{'-' if value < 0 else ''}{digits[: len(digits) - places]}.{digits[len(digits) - places :]}")
