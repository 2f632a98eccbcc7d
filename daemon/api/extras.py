"""What a chat request asks for beyond text, as the extras of a job. Shapes alone: protocol.extras judges the contents."""

import re
from typing import Any, Literal

import msgspec

from daemon.api.errors import ApiError
from daemon.api.requests import ChatMessage, ChatRequest
from protocol.extras import MAX_JSON_BYTES, Extras, TurnNote

_msgpack = msgspec.msgpack.Decoder(Extras)

_PARAMETERS = ("tools", "tool_choice", "parallel_tool_calls", *["response_format"] * 3, "top_logprobs", "messages")
"""The request's parameter behind each field of Extras, in their order."""


def extras_of(chat: ChatRequest) -> Extras | None:
    """The extras of `chat`, None where it asks for nothing of the kind; raises ApiError 400 that names the parameter."""
    if chat.top_logprobs is not None and not chat.logprobs:
        raise ApiError(400, "invalid_value", "'top_logprobs' goes with \"logprobs\": true", "top_logprobs")
    form, name, schema = _form(chat.response_format)
    choice = _tool_choice(chat.tool_choice)
    extras = Extras(
        tools=_json(chat.tools, "tools") if chat.tools else b"",
        tool_choice="" if not chat.tools and choice in ("none", "auto") else choice,
        parallel_tool_calls=chat.parallel_tool_calls is not False or not chat.tools,
        response_format=form,
        schema_name=name,
        schema=schema,
        top_logprobs=(chat.top_logprobs or 0) if chat.logprobs else -1,
        notes=tuple(_notes(chat.messages)),
    )
    try:
        return None if extras == Extras() else _msgpack.decode(msgspec.msgpack.encode(extras))
    except msgspec.ValidationError as error:
        place = re.search(r"\$\[(\d)\]", str(error))
        parameter = _PARAMETERS[int(place.group(1))] if place is not None else "messages"
        raise ApiError(400, "invalid_value", f"'{parameter}' holds a name or id that is out of bounds", parameter) from None


def _tool_choice(choice: str | dict[str, Any] | None) -> str:
    if choice is None or isinstance(choice, str):
        if choice not in (None, "none", "auto", "required"):
            raise ApiError(400, "invalid_value", "'tool_choice' is none, auto, required or a function", "tool_choice")
        return choice or ""
    function = choice.get("function")
    name = function.get("name") if choice.get("type") == "function" and isinstance(function, dict) else None
    if not isinstance(name, str):
        raise ApiError(400, "invalid_value", "'tool_choice' names a function alone", "tool_choice")
    return f"function:{name}"


def _form(form: dict[str, Any] | None) -> tuple[Literal["", "json_object", "json_schema"], str, bytes]:
    kind = "text" if form is None else form.get("type")
    if kind == "text":
        return "", "", b""
    if kind == "json_object":
        return "json_object", "", b""
    named = form.get("json_schema") if form is not None else None
    if kind != "json_schema" or not isinstance(named, dict) or not isinstance(named.get("schema"), dict):
        reason = "'response_format' is text, json_object or json_schema with a schema"
        raise ApiError(400, "invalid_value", reason, "response_format")
    return "json_schema", str(named.get("name") or ""), _json(named["schema"], "response_format")


def _notes(messages: list[ChatMessage]) -> list[TurnNote]:
    notes = []
    for place, message in enumerate(messages):
        if message.tool_call_id is not None:
            notes.append(TurnNote(place, message.tool_call_id))
        elif message.tool_calls:
            notes.append(TurnNote(place, tool_calls=_json(message.tool_calls, "messages")))
    return notes


def _json(value: object, parameter: str) -> bytes:
    raw = msgspec.json.encode(value)
    if len(raw) > MAX_JSON_BYTES:
        raise ApiError(413, "invalid_value", f"'{parameter}' has {len(raw)} bytes where {MAX_JSON_BYTES} are allowed", parameter)
    return raw
