"""Decides which JSON schemas an engine may be given: no regular expressions, no outside references, no cycles, a bounded size.

Engines compile a schema into a grammar: a cycle ends llama.cpp's process, and a pattern can take a regular expression's time.
"""

from collections.abc import Iterator, Mapping
from typing import Any

MAX_DEPTH = 32
"""Levels of nested JSON; OpenAI allows a schema 10 levels of objects, which is about 20 here."""

MAX_COST = 8192
"""Subschemas with every reference written out, plus every bound on a length: what a grammar's size grows with."""

MAX_NAME_CHARS = 128
_EXACT = 2**53

Schema = Mapping[str, Any]

TYPES = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
FORMATS = frozenset({"date", "time", "date-time", "uuid", "email", "ipv4", "ipv6", "uri"})

_ONE = ("items", "additionalProperties")
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "$defs", "definitions")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_TEXTS = ("title", "description")
_UNREAD = ("default", "examples", "enum", "const", "nullable", "strict")
_READ = ("type", "format", "required", "$ref", "$schema")
_KNOWN = frozenset((*_ONE, *_MANY, *_NAMED, *_COUNTS, *_BOUNDS, *_TEXTS, *_UNREAD, *_READ))


def check_schema(schema: object) -> None:
    """Raises ValueError, in a phrase that says what is wrong, unless `schema` is one that may be given to an engine."""
    if not isinstance(schema, dict):
        raise ValueError("a schema is an object")
    check_depth(schema)
    _Checker(schema).check()


def check_depth(value: object) -> None:
    """Raises ValueError for JSON nested deeper than MAX_DEPTH."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _inside(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


class _Checker:
    """One schema; references are looked up in its root alone."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._costs: dict[str, int] = {}
        self._open: set[str] = set()

    def check(self) -> None:
        cost = self._cost(self._root)
        if cost > MAX_COST:
            raise ValueError(f"it is too large: {cost} parts and lengths where {MAX_COST} are allowed")

    def _cost(self, schema: object) -> int:
        if isinstance(schema, bool):
            return 1
        if not isinstance(schema, dict):
            raise ValueError("a subschema is neither an object nor true or false")
        for name in schema:
            if name not in _KNOWN:
                raise ValueError(f"the keyword {name[:32]!r} is not supported")
        _check_plain(schema)
        cost = 1 + sum(_count(schema, name) for name in _COUNTS) + len(_listed(schema, "enum"))
        cost += sum(self._cost(schema[name]) for name in _ONE if name in schema)
        cost += sum(self._cost(inner) for name in _MANY for inner in _listed(schema, name))
        cost += sum(self._cost(inner) for name in _NAMED for inner in _named(schema, name).values())
        return cost + (self._of_reference(schema["$ref"]) if "$ref" in schema else 0)

    def _of_reference(self, reference: object) -> int:
        if not isinstance(reference, str) or not reference.startswith(("#/$defs/", "#/definitions/")):
            raise ValueError("a $ref names '#/$defs/...' alone, within the schema")
        if reference in self._open:
            raise ValueError("a schema that refers to itself is not supported")
        if reference not in self._costs:
            _, place, name = reference.split("/", 2)
            target = _named(self._root, place).get(name)
            if target is None:
                raise ValueError(f"nothing is defined at {reference[:64]!r}")
            self._open.add(reference)
            self._costs[reference] = min(self._cost(target), MAX_COST + 1)
            self._open.discard(reference)
        return self._costs[reference]


def _check_plain(schema: Schema) -> None:
    kind = schema.get("type", [])
    if any(one not in TYPES for one in (kind if isinstance(kind, list) else [kind]) if isinstance(one, str)) or not (
        isinstance(kind, str) or (isinstance(kind, list) and all(isinstance(one, str) for one in kind))
    ):
        raise ValueError("a 'type' is not one of JSON schema's")
    if "format" in schema and schema["format"] not in FORMATS:
        raise ValueError("a 'format' is not supported")
    if not all(isinstance(name, str) for name in _listed(schema, "required")):
        raise ValueError("'required' lists names")
    if not all(isinstance(schema.get(name, ""), str) for name in (*_TEXTS, "$schema")):
        raise ValueError("a title or description is not text")
    for name in _BOUNDS:
        bound = schema.get(name, 0)
        if isinstance(bound, bool) or not isinstance(bound, int | float) or abs(bound) > _EXACT:
            raise ValueError(f"'{name}' is not a number of at most 2^53")

    _check_ranges(schema)


def _check_ranges(schema: Schema) -> None:
    """llama.cpp never ends over an array of at least five and at most two items."""
    lowest = max((schema[name] for name in ("minimum", "exclusiveMinimum") if name in schema), default=-_EXACT)
    highest = min((schema[name] for name in ("maximum", "exclusiveMaximum") if name in schema), default=_EXACT)
    counts = ((_count(schema, f"min{what}"), _count(schema, f"max{what}", MAX_COST)) for what in ("Items", "Length"))
    if lowest > highest or any(least > most for least, most in counts):
        raise ValueError("a least value is greater than the greatest")
    if any(name in schema and not _listed(schema, name) for name in ("enum", "anyOf", "oneOf")):
        raise ValueError("there is nothing to choose from")


def _count(schema: Schema, name: str, missing: int = 0) -> int:
    found = schema.get(name, missing)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= MAX_COST:
        raise ValueError(f"'{name}' is not a whole number from 0 to {MAX_COST}")
    return found


def _listed(schema: Schema, name: str) -> list[Any]:
    found = schema.get(name, [])
    if not isinstance(found, list):
        raise ValueError(f"'{name}' is not a list")
    return found


def _named(schema: Schema, name: str) -> dict[str, Any]:
    found = schema.get(name, {})
    if not isinstance(found, dict) or not all(0 < len(key) <= MAX_NAME_CHARS and key.isprintable() for key in found):
        raise ValueError(f"'{name}' is not an object of names of at most {MAX_NAME_CHARS} characters")
    return found
