"""What a job may ask of an engine beyond text: tools, a form for the answer, log-probabilities. Bounded JSON, read strictly.

The serving side reads all of it again: nothing here is trusted for having passed the asker.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from protocol.json_schema import check_depth, check_schema
from protocol.wire.codec import Message
from protocol.wire.errors import malformed

MAX_JSON_BYTES = 32 << 10
"""Of the tools, of a schema, and of the calls in one turn."""

MAX_TOOLS = 64
MAX_CALLS = 64
MAX_TOP_LOGPROBS = 20
"""OpenAI's ceiling and vLLM's."""

FUNCTION_PATTERN = r"^[A-Za-z0-9_-]{1,64}\Z"
"""OpenAI's rule for the name of a function or a schema."""

Json = Annotated[bytes, msgspec.Meta(max_length=MAX_JSON_BYTES)]
FunctionName = Annotated[str, msgspec.Meta(pattern=FUNCTION_PATTERN)]
CallId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.:-]{0,64}\Z")]

Feature = Literal["tools", "response_format", "logprobs"]
"""What an engine has or has not; each is named as the request's parameter is."""

T = TypeVar("T")


class TurnNote(Message, frozen=True):
    """What text cannot say of turn number `turn`: whose call it answers (a tool's result), or the calls that it made (JSON)."""

    turn: Annotated[int, msgspec.Meta(ge=0, le=255)]
    tool_call_id: CallId = ""
    tool_calls: Json = b""


class Extras(Message, frozen=True):
    """Empty values ask for nothing. `tool_choice` is "", "none", "auto", "required" or "function:NAME"."""

    tools: Json = b""
    tool_choice: Annotated[str, msgspec.Meta(pattern=r"^(none|auto|required|function:[A-Za-z0-9_-]{1,64})?\Z")] = ""
    parallel_tool_calls: bool = True
    response_format: Literal["", "json_object", "json_schema"] = ""
    schema_name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{0,64}\Z")] = ""
    schema: Json = b""
    top_logprobs: Annotated[int, msgspec.Meta(ge=-1, le=MAX_TOP_LOGPROBS)] = -1
    """-1 asks for none, 0 for those of the tokens themselves."""
    notes: Annotated[tuple[TurnNote, ...], msgspec.Meta(max_length=256)] = ()


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A function that the model may call."""

    name: FunctionName
    description: Annotated[str, msgspec.Meta(max_length=8192)] = ""
    parameters: dict[str, Any] = {}
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """OpenAI's tool; only functions exist here."""

    type: Literal["function"]
    function: Function


class CalledFunction(msgspec.Struct, frozen=True):
    """`arguments` is JSON as text; models also say "" for none."""

    name: FunctionName
    arguments: Annotated[str, msgspec.Meta(max_length=MAX_JSON_BYTES)] = "{}"


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model made in an earlier turn."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.:-]{1,64}\Z")]
    function: CalledFunction
    type: Literal["function"] = "function"


Tools = Annotated[list[Tool], msgspec.Meta(max_length=MAX_TOOLS)]
Calls = Annotated[list[ToolCall], msgspec.Meta(min_length=1, max_length=MAX_CALLS)]


def wanted(extras: Extras) -> Iterator[Feature]:
    """The features that an engine needs for `extras`."""
    if extras.tools or extras.notes:
        yield "tools"
    if extras.response_format:
        yield "response_format"
    if extras.top_logprobs >= 0:
        yield "logprobs"


def read_tools(extras: Extras) -> list[Tool]:
    """The tools, none where there are none; raises RemoteError(malformed) that names the parameter."""
    if not extras.tools:
        return []
    tools: list[Tool] = _read(Tools, extras.tools, "tools")
    if len({tool.function.name for tool in tools}) < len(tools):
        raise malformed("'tools': two functions have one name")
    for tool in tools:
        if tool.function.parameters:
            _check(tool.function.parameters, "tools")
    return tools


def read_schema(extras: Extras) -> dict[str, Any]:
    """The answer's schema; raises RemoteError(malformed) that names the parameter."""
    schema: dict[str, Any] = _read(dict[str, Any], extras.schema, "response_format")
    _check(schema, "response_format")
    return schema


def read_calls(note: TurnNote) -> list[ToolCall]:
    """The calls that a turn made; raises RemoteError(malformed) that names the parameter."""
    calls: list[ToolCall] = _read(Calls, note.tool_calls, "messages")
    for place, call in enumerate(calls):
        if not call.function.arguments:  # which no chat template can read
            calls[place] = msgspec.structs.replace(call, function=CalledFunction(call.function.name))
            continue
        arguments: dict[str, Any] = _read(dict[str, Any], call.function.arguments.encode(), "messages")
        try:
            check_depth(arguments)
        except ValueError as error:
            raise malformed(f"'messages': the arguments of a call: {error}") from None
    return calls


def check_extras(extras: Extras, turns: int) -> None:
    """Raises RemoteError(malformed), naming the parameter at fault, unless an engine that has the features may be given these."""
    tools = read_tools(extras)
    if extras.tool_choice not in ("", "none") and not tools:
        raise malformed("'tool_choice': there are no tools to choose from")
    name = extras.tool_choice.removeprefix("function:")
    if name != extras.tool_choice and name not in {tool.function.name for tool in tools}:
        raise malformed(f"'tool_choice': no tool is named {name}")
    if (extras.response_format == "json_schema") != bool(extras.schema):
        raise malformed("'response_format': a schema goes with json_schema, and with nothing else")
    if extras.schema:
        read_schema(extras)
    places = [note.turn for note in extras.notes]
    if len(set(places)) < len(places) or any(place >= turns for place in places):
        raise malformed("'messages': what is said of a turn fits none")
    for note in extras.notes:
        if bool(note.tool_call_id) == bool(note.tool_calls):
            raise malformed("'messages': a turn either makes calls or answers one")
        if note.tool_calls:
            read_calls(note)


def _read(kind: Any, raw: bytes, parameter: str) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise malformed(f"'{parameter}': {str(error)[:160]}") from None


def _check(schema: dict[str, Any], parameter: str) -> None:
    try:
        check_schema(schema)
    except (ValueError, RecursionError) as error:
        raise malformed(f"'{parameter}': {error}") from None
