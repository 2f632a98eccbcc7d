"""OpenAI's Responses endpoint for text: input and instructions in, one message out, whole or as events. Keeps no state."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from daemon.api.backend import AskRequest, Backend, EstimateEvent, ProgressEvent, ResultEvent, TokenEvent
from daemon.api.errors import ApiError, json_response, of_remote
from daemon.api.many import Numbered, ask_all
from daemon.api.openai import Clock, IdSource, begun_headers, estimate_comment, is_result, named, reply_headers, side_of
from daemon.api.requests import ChatMessage, ChatRequest, PeerBlock, TextPart, asks_of, fresh_seed, read_openai
from daemon.api.stream import AskStream, sse
from protocol.wire.errors import Code, RemoteError
from protocol.wire.limits import MAX_TOKENS

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "background": (None, False),
    "include": (None, []),
    "metadata": (None, {}),
    "parallel_tool_calls": (None, True, False),
    "previous_response_id": (None,),
    "reasoning": (None, {}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "text": (None, {}, {"format": {"type": "text"}}),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "truncation": (None, "disabled"),
    "user": (),
    "safety_identifier": (),
    "prompt_cache_key": (),
}
"""Fields of the Responses API that the mesh does not offer, with the values that ask for nothing; () accepts any value unread."""


class InputPart(msgspec.Struct, frozen=True):
    """A text part of an input message; "output_text" is that of an earlier answer."""

    type: Literal["input_text", "output_text"]
    text: str


class InputMessage(msgspec.Struct, frozen=True):
    """One message of the input."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputPart]
    type: Literal["message"] = "message"


class ResponsesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/responses."""

    input: str | Annotated[list[InputMessage], msgspec.Meta(min_length=1, max_length=255)]
    model: str = ""
    instructions: str | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    stream: bool | None = None
    peer: PeerBlock | None = None


class Responses:
    """The handler of /v1/responses."""

    def __init__(self, backend: Backend, now: Clock, new_id: IdSource) -> None:
        self._backend = backend
        self._now = now
        self._new_id = new_id

    async def create(self, request: Request) -> Response:
        """POST /v1/responses."""
        asked = read_openai(ResponsesRequest, await request.body(), NEUTRAL)
        shape = _Shape(self._new_id(), self._now(), asked)
        work = partial(ask_all, self._backend, named(_asks(asked, fresh_seed(shape.id)), shape.id))
        if asked.stream:
            return AskStream(work, shape.events, shape.error, b"", shape.head, is_result)
        results: list[ResultEvent] = []

        async def take(numbered: Numbered) -> None:
            if isinstance(numbered[1], ResultEvent):
                results.append(numbered[1])

        try:
            await work(take)
            if not results:
                raise RemoteError(Code.INTERNAL, "the answer ended without a result")
        except RemoteError as error:
            raise of_remote(error, shape.id) from None
        return json_response(shape.ended(results[0]), headers=reply_headers(shape.id, results))


def _asks(asked: ResponsesRequest, drawn: int) -> list[AskRequest]:
    given = [InputMessage("user", asked.input)] if isinstance(asked.input, str) else asked.input
    before = [ChatMessage("system", asked.instructions)] if asked.instructions else []
    chat = ChatRequest(
        messages=[*before, *(ChatMessage(one.role, _text(one.content)) for one in given)],
        model=asked.model,
        max_tokens=asked.max_output_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        peer=asked.peer,
    )
    try:
        return asks_of(chat, chat.messages, drawn)
    except ApiError as error:
        param = "input" if error.param == "messages" else error.param
        raise ApiError(error.status, error.code, error.message, param) from None


def _text(content: str | list[InputPart]) -> str | list[TextPart]:
    return content if isinstance(content, str) else [TextPart("text", part.text) for part in content]


class _Shape:
    """One response object and its events, numbered in their order."""

    def __init__(self, unique: str, created: float, asked: ResponsesRequest) -> None:
        self.id = f"resp_{unique}"
        self._message_id = f"msg_{unique}"
        self._created = created
        self._asked = asked
        self._sequence = 0
        self._text_sent = False

    def ended(self, result: ResultEvent) -> dict[str, Any]:
        """The response object of a whole answer."""
        cut = result.finish_reason == "length"
        usage = result.usage
        return self._object("incomplete" if cut else "completed") | {
            "model": result.model,
            "output": [self._message(result.answer, "incomplete" if cut else "completed")],
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
            "swarm": side_of(result),
        }

    def head(self, numbered: Numbered | None) -> dict[str, str]:
        """The headers of a stream."""
        return {"x-request-id": self.id} if numbered is None else begun_headers(numbered[1])

    def events(self, numbered: Numbered) -> Iterable[bytes]:
        event = numbered[1]
        match event:
            case TokenEvent(text):
                yield from self._begin()
                if text:
                    yield self._delta(text)
            case EstimateEvent():
                yield estimate_comment(event)
            case ProgressEvent():
                counts = f"sealed {event.sealed} revealed {event.revealed} judged {event.judged} of {event.of}"
                yield f": {event.phase} {counts}\n\n".encode()
            case ResultEvent():
                yield from self._begin()
                if not self._text_sent and event.answer:
                    yield self._delta(event.answer)
                yield from self._end(event)

    def error(self, error: ApiError) -> bytes:
        """How a stream that began ends badly."""
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def _begin(self) -> Iterable[bytes]:
        if self._sequence:
            return
        response = self._object("in_progress")
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)
        item = {"type": "message", "id": self._message_id, "status": "in_progress", "role": "assistant", "content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._place(), part=_part(""))

    def _delta(self, text: str) -> bytes:
        self._text_sent = True
        return self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[])

    def _end(self, result: ResultEvent) -> Iterable[bytes]:
        whole = self.ended(result)
        yield self._event("response.output_text.done", **self._place(), text=result.answer, logprobs=[])
        yield self._event("response.content_part.done", **self._place(), part=_part(result.answer))
        yield self._event("response.output_item.done", output_index=0, item=whole["output"][0])
        yield self._event(f"response.{whole['status']}", response=whole)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._message_id, "output_index": 0, "content_index": 0}

    def _event(self, name: str, **fields: Any) -> bytes:
        numbered = {"type": name, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return sse(numbered, name)

    def _message(self, text: str, status: str) -> dict[str, Any]:
        return {"type": "message", "id": self._message_id, "status": status, "role": "assistant", "content": [_part(text)]}

    def _object(self, status: str) -> dict[str, Any]:
        asked = self._asked
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": {},
            "model": asked.model,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": asked.temperature or 0.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": None,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
