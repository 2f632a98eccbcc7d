"""OpenAI's endpoints over the mesh: models, chat completions and completions, streamed or whole. Maps shapes; decides no peer."""

from collections.abc import Callable, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from daemon.api.backend import AskEvent, AskRequest, Backend, ProgressEvent, ResultEvent, TokenEvent
from daemon.api.errors import error_object, json_response
from daemon.api.requests import ROUND_MODELS, ChatMessage, ChatRequest, Common, CompletionRequest, ask_of, read_openai
from daemon.api.stream import AskStream, sse
from protocol.wire.errors import Code, RemoteError

Clock = Callable[[], float]
IdSource = Callable[[], str]


class OpenAi:
    """The handlers under /v1/. `now` gives unix seconds, `new_id` a fresh id for each response."""

    def __init__(self, backend: Backend, now: Clock, new_id: IdSource) -> None:
        self._backend = backend
        self._now = now
        self._new_id = new_id

    async def models(self, request: Request) -> Response:
        """GET /v1/models: every model of the mesh, and the round strategies."""
        listed = await self._backend.models()
        names = [entry["name"] for entry in listed["models"]]
        created = int(self._now())
        entries = [{"id": name, "object": "model", "created": created, "owned_by": "mesh"} for name in (*names, *ROUND_MODELS)]
        return json_response({"object": "list", "data": entries})

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        chat = read_openai(ChatRequest, await request.body())
        shape = _Shape(f"chatcmpl-{self._new_id()}", int(self._now()), chat, is_chat=True)
        return await self._answer(shape, chat, ask_of(chat, chat.messages))

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        completion = read_openai(CompletionRequest, await request.body())
        shape = _Shape(f"cmpl-{self._new_id()}", int(self._now()), completion, is_chat=False)
        return await self._answer(shape, completion, ask_of(completion, [ChatMessage("user", completion.prompt)]))

    async def _answer(self, shape: "_Shape", request: Common, ask: AskRequest) -> Response:
        if request.stream:
            return AskStream(self._backend.ask(ask), shape.events, lambda error: sse(error_object(error)), b"data: [DONE]\n\n")
        result: ResultEvent | None = None
        async with self._backend.ask(ask) as events:
            async for event in events:
                if isinstance(event, ResultEvent):
                    result = event
        if result is None:
            raise RemoteError(Code.INTERNAL, "the answer ended without a result")
        return json_response(shape.whole(result), headers=shape.headers(result))


class _Shape:
    """One response in OpenAI's shapes; remembers whether the role was sent and text was streamed."""

    def __init__(self, response_id: str, created: int, request: Common, is_chat: bool) -> None:
        self._id = response_id
        self._created = created
        self._model = request.model
        self._with_usage = request.stream_options is not None and request.stream_options.include_usage
        self._is_chat = is_chat
        self._role_sent = False
        self._text_sent = False

    def headers(self, result: ResultEvent) -> dict[str, str]:
        return {
            "x-request-id": self._id,
            "x-swarmd-peer": result.peer_id,
            "x-swarmd-path": result.path,
            "x-swarmd-attempts": str(max(1, len(result.attempts))),
        }

    def whole(self, result: ResultEvent) -> dict[str, Any]:
        message: dict[str, Any] = {"index": 0, "finish_reason": result.finish_reason, "logprobs": None}
        if self._is_chat:
            message["message"] = {"role": "assistant", "content": result.answer, "refusal": None}
        else:
            message["text"] = result.answer
        reply = self._frame("chat.completion" if self._is_chat else "text_completion", [message], result.model)
        return reply | {"usage": _usage(result)} | _side_field(result)

    def events(self, event: AskEvent) -> Iterable[bytes]:
        match event:
            case TokenEvent(text):
                self._text_sent = True
                yield self._delta(text)
            case ProgressEvent():
                counts = f"sealed {event.sealed} revealed {event.revealed} judged {event.judged} of {event.of}"
                yield f": {event.phase} {counts}\n\n".encode()
            case ResultEvent():
                if not self._text_sent:
                    yield self._delta(event.answer)
                yield self._last(event)
                if self._with_usage:
                    yield sse(self._frame(self._kind, [], event.model) | {"usage": _usage(event)})

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    def _delta(self, text: str) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": None}
        if self._is_chat:
            choice["delta"] = {"content": text} if self._role_sent else {"role": "assistant", "content": text}
            self._role_sent = True
        else:
            choice["text"] = text
        return sse(self._frame(self._kind, [choice], self._model))

    def _last(self, result: ResultEvent) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": result.finish_reason}
        if self._is_chat:
            choice["delta"] = {}
        else:
            choice["text"] = ""
        return sse(self._frame(self._kind, [choice], result.model) | _side_field(result))

    def _frame(self, kind: str, choices: list[dict[str, Any]], model: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": model, "choices": choices}


def _usage(result: ResultEvent) -> dict[str, int]:
    usage = result.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _side_field(result: ResultEvent) -> dict[str, Any]:
    attempts = [{"peer_id": attempt.peer_id, "outcome": attempt.outcome} for attempt in result.attempts]
    return {"swarm": {"peer_id": result.peer_id, "strategy": result.strategy, "attempts": attempts, "round": result.round}}
