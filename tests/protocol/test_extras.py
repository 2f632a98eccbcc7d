"""What a stranger may put into a job's extras and into an answer's pieces: everything out of bounds is refused, by name."""

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.delta import (
    MAX_ITEM_ARGUMENTS,
    MAX_ITEM_CHARS,
    CallDelta,
    Delta,
    FunctionDelta,
    TokenLogprob,
    TopToken,
    delta_items,
    read_delta,
)
from protocol.extras import Extras, TurnNote, check_extras, wanted
from protocol.inference import read_job
from protocol.job import Job, Role, Turn, check_job
from protocol.json_schema import MAX_COST, check_schema
from protocol.wire.codec import decode, encode
from protocol.wire.errors import Code, RemoteError
from protocol.wire.limits import MAX_CHUNK_BYTES, MAX_PROMPT_BYTES

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def tools(**function: Any) -> bytes:
    return json.dumps([{"type": "function", "function": {"name": "f"} | function}]).encode()


def calls(*made: Any) -> bytes:
    return json.dumps(made).encode()


def test_the_bytes_are_those_of_the_msgpack_package() -> None:
    notes = (TurnNote(0, tool_calls=calls(CALL)), TurnNote(1, "c1"))
    extras = Extras(tools(), "auto", False, "json_schema", "n", b"{}", 3, notes)
    job = Job((Turn(Role.ASSISTANT, ""), Turn(Role.USER, "x")), extras=extras)
    raw = [tools(), "auto", False, "json_schema", "n", b"{}", 3, [[0, "", calls(CALL)], [1, "c1", b""]]]
    turns, sampling = [["assistant", ""], ["user", "x"]], [256, 0, 1000, 0, []]
    assert encode(job) == msgpack.packb([turns, sampling, "", raw])
    assert read_job(encode(job)) == job
    assert list(wanted(extras)) == ["tools", "response_format", "logprobs"]
    assert list(wanted(Extras())) == []


@pytest.mark.parametrize(
    "plain",
    [
        [b"x" * (33 << 10)],
        [b"", "function:rm -rf"],
        [b"", "any"],
        [b"", "", True, "grammar"],
        [b"", "", True, "", "a b"],
        [b"", "", True, "", "", b"", 21],
        [b"", "", True, "", "", b"", -2],
        [b"", "", True, "", "", b"", -1, [[256]]],
        [b"", "", True, "", "", b"", -1, [[0, "a\n"]]],
    ],
)
def test_extras_out_of_bounds_are_malformed(plain: list[Any]) -> None:
    with pytest.raises(RemoteError) as refused:
        decode(Extras, msgpack.packb(plain))
    assert refused.value.code is Code.MALFORMED


@pytest.mark.parametrize(
    ("extras", "parameter"),
    [
        (Extras(b"{"), "tools"),
        (Extras(b"[" * 20_000), "tools"),
        (Extras(b'[{"type":"web_search"}]'), "tools"),
        (Extras(b'[{"type":"function","function":{"name":"f"},"server_url":"http://x"}]'), "tools"),
        (Extras(tools(name="a b")), "tools"),
        (Extras(tools(name="f\n")), "tools"),
        (Extras(tools(description="x" * 9000)), "tools"),
        (Extras(tools(parameters={"pattern": "(a+)+$"})), "tools"),
        (Extras(tools(parameters=[])), "tools"),
        (Extras(json.dumps(json.loads(tools()) * 2).encode()), "tools"),
        (Extras(json.dumps([{"type": "function", "function": {"name": f"f{n}"}} for n in range(65)]).encode()), "tools"),
        (Extras(tool_choice="auto"), "tool_choice"),
        (Extras(tools(), "function:g"), "tool_choice"),
        (Extras(response_format="json_schema"), "response_format"),
        (Extras(response_format="json_object", schema=b"{}"), "response_format"),
        (Extras(schema=b"{}"), "response_format"),
        (Extras(response_format="json_schema", schema=b"[]"), "response_format"),
        (Extras(notes=(TurnNote(2, "c"),)), "messages"),
        (Extras(notes=(TurnNote(0, "c"), TurnNote(0, "d"))), "messages"),
        (Extras(notes=(TurnNote(0),)), "messages"),
        (Extras(notes=(TurnNote(0, "c", calls(CALL)),)), "messages"),
        (Extras(notes=(TurnNote(0, tool_calls=b"[]"),)), "messages"),
        (Extras(notes=(TurnNote(0, tool_calls=calls(CALL | {"id": ""})),)), "messages"),
        (Extras(notes=(TurnNote(0, tool_calls=calls(CALL | {"function": {"name": "f", "arguments": "no"}})),)), "messages"),
    ],
)
def test_the_parameter_at_fault_is_named(extras: Extras, parameter: str) -> None:
    with pytest.raises(RemoteError, match=f"'{parameter}'") as refused:
        check_extras(extras, 2)
    assert refused.value.code is Code.MALFORMED


def test_tools_count_as_prompt() -> None:
    prompt = (Turn(Role.USER, "x" * (MAX_PROMPT_BYTES - 100)),)
    assert check_job(Job(prompt))
    with pytest.raises(RemoteError) as refused:
        check_job(Job(prompt, extras=Extras(tools(description="x" * 100))))
    assert refused.value.code is Code.OVERSIZED


PYDANTIC = {
    "$defs": {"Item": {"type": "object", "title": "Item", "properties": {"name": {"type": "string", "maxLength": 20}}}},
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"$ref": "#/$defs/Item"}, "minItems": 1, "maxItems": 9},
        "when": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}], "default": None},
        "pattern": {"type": ["integer", "null"], "minimum": 0, "description": "a property may be named as a keyword is"},
    },
    "required": ["items"],
    "additionalProperties": False,
}


def test_a_usual_schema_passes() -> None:
    check_schema(PYDANTIC)
    check_schema({})


def doubling(times: int) -> dict[str, Any]:
    """A schema of a few hundred bytes that stands for 2 ** times parts."""
    defs = {f"d{n}": {"prefixItems": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(times)}
    return {"$defs": {**defs, f"d{times}": {}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    "schema",
    [
        [],
        {"pattern": "a"},
        {"patternProperties": {"^a": {}}},
        {"properties": {"a": {"items": {"pattern": "(a+)+$"}}}},
        {"$ref": "http://example.org/schema"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#"},
        {"$ref": "#/$defs/gone"},
        {"$ref": "#/properties/a", "properties": {"a": {}}},
        {"$ref": 1},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "allOf": [{"$ref": "#/$defs/a"}]},
        {"$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
        {"$defs": {"unused": {"$ref": "#/$defs/unused"}}},
        doubling(40),
        {"maxLength": MAX_COST},
        {"maxItems": -1},
        {"minLength": True},
        {"minimum": 1e300},
        {"minimum": "1"},
        {"type": "text"},
        {"type": ["string", 1]},
        {"type": {}},
        {"format": "regex"},
        {"required": "a"},
        {"required": [1]},
        {"properties": []},
        {"properties": {"": {}}},
        {"properties": {"x" * 129: {}}},
        {"anyOf": {}},
        {"anyOf": ["x"]},
        {"enum": "x"},
        {"title": 1},
        {"type": "array", "minItems": 5, "maxItems": 2},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"type": "integer", "minimum": 9, "maximum": -5},
        {"type": "integer", "minimum": 9, "exclusiveMaximum": -5},
        {"enum": []},
        {"oneOf": []},
    ],
)
def test_a_schema_that_could_harm_an_engine_is_refused(schema: Any) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        check_schema(schema)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "items", "anyOf", "$ref", "$defs", "properties", "enum", "maxItems", "a"]), inner
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_json_is_a_schema_or_is_not(value: Any) -> None:
    try:
        check_schema(value)
    except ValueError:
        return
    assert isinstance(value, dict)


# --- pieces -----------------------------------------------------------------------------------------------------------------

TOKEN = TokenLogprob("a", -0.5, [97], (TopToken("a", -0.5, [97]), TopToken("\N{SNOWMAN}" * 128, -9999.0)))


def test_a_piece_crosses_whole() -> None:
    call = CallDelta(0, "c1", "function", FunctionDelta("f", "\x01" * (2 * MAX_ITEM_ARGUMENTS + 1)))
    longest = TokenLogprob("\x01" * 128, -1.0, [200] * 256, (TopToken("\x01" * 128, -1.0, [200] * 256),) * 20)
    found = list(delta_items("é" * (MAX_ITEM_CHARS + 1), (call, CallDelta(1, "c2")), (longest,) * 9))
    assert max(map(len, found)) <= MAX_CHUNK_BYTES
    read = [read_delta(item) for item in found]
    assert "".join(delta.text for delta in read) == "é" * (MAX_ITEM_CHARS + 1)
    parts = [part for delta in read for part in delta.tool_calls]
    assert (parts[0].id, parts[-1].id, {part.index for part in parts}) == ("c1", "c2", {0, 1})
    assert "".join((part.function.arguments or "") for part in parts if part.function) == call.function.arguments  # type: ignore[union-attr]
    assert [part.function.name for part in parts if part.function][1:] == [None, None]
    assert tuple(token for delta in read for token in delta.logprobs) == (longest,) * 9


def test_a_token_goes_with_its_log_probability() -> None:
    (item,) = delta_items("a", (), (TOKEN,))
    assert read_delta(item) == Delta("a", (), (TOKEN,))


def test_golden_pieces() -> None:
    assert list(delta_items("hi")) == [b"hi"]
    assert list(delta_items("", (CallDelta(0, "c", "function", FunctionDelta("f", "{")),))) == [
        b'\xc1{"tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":"{"}}]}'
    ]
    assert read_delta(b'\xc1{"logprobs":[{"token":"a","logprob":-0.5}],"later":1}') == Delta(logprobs=(TokenLogprob("a", -0.5),))


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b"\xc1",
        b"\xc1[]",
        b"\xc1{" + b'"a":' + b"[" * 50_000,
        b'\xc1{"tool_calls":[{"index":64}]}',
        b'\xc1{"tool_calls":[{"index":0,"type":"custom"}]}',
        b'\xc1{"tool_calls":[{"index":0,"function":{"arguments":"%s"}}]}' % (b"x" * (MAX_ITEM_ARGUMENTS + 1)),
        b'\xc1{"logprobs":[{"token":"%s","logprob":0}]}' % (b"x" * 129),
        b'\xc1{"logprobs":[{"token":"a","logprob":0,"bytes":[256]}]}',
        b'\xc1{"logprobs":[{"token":"a","logprob":NaN}]}',
    ],
)
def test_a_piece_out_of_bounds_is_malformed(body: bytes) -> None:
    with pytest.raises(RemoteError) as refused:
        read_delta(body)
    assert refused.value.code is Code.MALFORMED


@given(st.binary(max_size=200))
def test_any_bytes_are_a_piece_or_malformed(body: bytes) -> None:
    for raw in (body, b"\xc1" + body):
        code: Code | None = None
        try:
            read_delta(raw)
        except RemoteError as error:
            code = error.code
        assert code in (None, Code.MALFORMED)
