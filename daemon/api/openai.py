"""OpenAI's endpoints over the mesh: models, chat completions and completions, streamed or whole. Maps shapes; decides no peer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from daemon.api.backend import AskEvent, AskRequest, Backend, BegunEvent, EstimateEvent, ProgressEvent, ResultEvent, TokenEvent
from daemon.api.choice import Choice, shown_logprobs
from daemon.api.errors import ApiError, error_object, json_response, of_remote
from daemon.api.extras import extras_of
from daemon.api.many import Numbered, ask_all
from daemon.api.requests import (
    ROUND_MODELS,
    ChatMessage,
    ChatRequest,
    Common,
    CompletionRequest,
    asks_of,
    fresh_seed,
    read_openai,
)
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
        return json_response({"object": "list", "data": [self._model(name) for name in await self._models()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}: one of them."""
        name = request.path_params["name"]
        if not name:
            return await self.models(request)
        if name not in await self._models():
            reason = f"no reachable peer serves {name[:64]}; swarmd models lists what the mesh offers"
            raise ApiError(404, "model_not_found", reason, "model")
        return json_response(self._model(name))

    async def _models(self) -> list[str]:
        listed = await self._backend.models()
        return [*(entry["name"] for entry in listed["models"]), *ROUND_MODELS]

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": int(self._now()), "owned_by": "mesh"}

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        chat = read_openai(ChatRequest, await request.body())
        shape = _Shape(f"chatcmpl-{self._new_id()}", int(self._now()), chat, is_chat=True)
        return await self._answer(shape, chat, asks_of(chat, chat.messages, fresh_seed(shape.id), extras_of(chat)))

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        completion = read_openai(CompletionRequest, await request.body())
        shape = _Shape(f"cmpl-{self._new_id()}", int(self._now()), completion, is_chat=False)
        prompt = completion.prompt if isinstance(completion.prompt, str) else completion.prompt[0]
        asks = asks_of(completion, [ChatMessage("user", prompt)], fresh_seed(shape.id))
        return await self._answer(shape, completion, asks)

    async def _answer(self, shape: "_Shape", request: Common, asks: list[AskRequest]) -> Response:
        work = partial(ask_all, self._backend, named(asks, shape.id))
        if request.stream:
            return AskStream(work, shape.events, _render_error, b"data: [DONE]\n\n", shape.head, is_result)
        try:
            await work(shape.take)
            return json_response(shape.whole(), headers=shape.headers())
        except RemoteError as error:
            raise of_remote(error, shape.id) from None


class _Shape:
    """One response in OpenAI's shapes; remembers what each of its choices has come to."""

    def __init__(self, response_id: str, created: int, request: Common, is_chat: bool) -> None:
        self.id = response_id
        self._created = created
        self._model = request.model
        self._with_usage = request.stream_options is not None and bool(request.stream_options.include_usage)
        self._is_chat = is_chat
        self._choices = [Choice(index) for index in range(request.n or 1)]

    async def take(self, numbered: Numbered) -> None:
        number, event = numbered
        if isinstance(event, TokenEvent):
            self._choices[number].take(event)
        elif isinstance(event, ResultEvent):
            self._choices[number].result = event

    def head(self, numbered: Numbered | None) -> dict[str, str]:
        """The headers of a stream: its id, and who answers, where one does."""
        if numbered is None:
            return {"x-request-id": self.id}
        return begun_headers(numbered[1]) if len(self._choices) == 1 else {}

    def headers(self) -> dict[str, str]:
        return reply_headers(self.id, self._results())

    def whole(self) -> dict[str, Any]:
        results = self._results()
        choices = [self._whole(choice, result) for choice, result in zip(self._choices, results, strict=True)]
        reply = self._frame("chat.completion" if self._is_chat else "text_completion", choices, results[0].model)
        return reply | {"usage": usage_of(results)} | _side_field(results)

    def _whole(self, choice: Choice, result: ResultEvent) -> dict[str, Any]:
        shown: dict[str, Any] = {"index": choice.index, "finish_reason": result.finish_reason, "logprobs": choice.logprobs()}
        return shown | ({"message": choice.message(result.answer)} if self._is_chat else {"text": result.answer})

    def events(self, numbered: Numbered) -> Iterable[bytes]:
        number, event = numbered
        choice = self._choices[number]
        match event:
            case TokenEvent():
                yield from self._introduced()
                choice.spoken = True
                yield self._delta(choice, event)
            case EstimateEvent():
                yield estimate_comment(event)
            case ProgressEvent():
                counts = f"sealed {event.sealed} revealed {event.revealed} judged {event.judged} of {event.of}"
                yield f": {event.phase} {counts}\n\n".encode()
            case ResultEvent():
                if not choice.spoken:
                    yield from self._introduced()
                    yield self._delta(choice, TokenEvent(event.answer))
                choice.result = event
                yield self._last(choice, event)
                if self._with_usage and all(one.result is not None for one in self._choices):
                    yield sse(self._frame(self._kind, [], event.model) | {"usage": usage_of(self._results())})

    def _introduced(self) -> Iterable[bytes]:
        """An empty piece of each of several choices, once: OpenAI's client wants their first pieces in their order."""
        if len(self._choices) > 1 and not self._choices[0].begun:
            for choice in self._choices:
                yield self._delta(choice, TokenEvent(""))

    def _results(self) -> list[ResultEvent]:
        results = [choice.result for choice in self._choices if choice.result is not None]
        if len(results) < len(self._choices):
            raise RemoteError(Code.INTERNAL, "the answer ended without a result")
        return results

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    def _delta(self, choice: Choice, event: TokenEvent) -> bytes:
        shown: dict[str, Any] = {"index": choice.index, "finish_reason": None, "logprobs": shown_logprobs(event.logprobs)}
        if self._is_chat:
            delta: dict[str, Any] = {} if choice.begun else {"role": "assistant"}
            if event.text or not event.tool_calls:
                delta["content"] = event.text
            if event.tool_calls:
                delta["tool_calls"] = event.tool_calls
            shown["delta"] = delta
        else:
            shown["text"] = event.text
        choice.begun = True
        return sse(self._frame(self._kind, [shown], self._model))

    def _last(self, choice: Choice, result: ResultEvent) -> bytes:
        shown: dict[str, Any] = {"index": choice.index, "finish_reason": result.finish_reason}
        if self._is_chat:
            shown["delta"] = {}
        else:
            shown["text"] = ""
        return sse(self._frame(self._kind, [shown], result.model) | _side_field([result]))

    def _frame(self, kind: str, choices: list[dict[str, Any]], model: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": model, "choices": choices}


def _render_error(error: ApiError) -> bytes:
    return sse(error_object(error))


def is_result(numbered: Numbered) -> bool:
    """Whether the event is an ask's last one."""
    return isinstance(numbered[1], ResultEvent)


def reply_headers(request_id: str, results: Sequence[ResultEvent]) -> dict[str, str]:
    """The headers of a whole reply: peer and path of its first choice, the attempts of all."""
    first = results[0]
    headers = {
        "x-request-id": request_id,
        "x-swarmd-peer": first.peer_id,
        "x-swarmd-path": first.path,
        "x-swarmd-attempts": str(sum(max(1, len(result.attempts)) for result in results)),
    }
    if first.overhead_s is not None and len(results) == 1:
        headers["x-swarmd-overhead-ms"] = f"{first.overhead_s * 1000:.1f}"
    return headers


def estimate_comment(event: EstimateEvent) -> bytes:
    """What is expected of a round, as a comment that clients skip."""
    route, whole = event.route["right_milli"] / 10, event.round["right_milli"] / 10
    said = f"{whole:.0f}% right by a round, {route:.0f}% by one peer" if event.known else "gold says nothing of these peers yet"
    return f": estimate {event.strategy} {event.topic} {event.arm}: {said}\n\n".encode()


def begun_headers(event: AskEvent) -> dict[str, str]:
    """The headers that a stream has besides its id: none before it is known who answers."""
    if not isinstance(event, BegunEvent):
        return {}
    return {"x-swarmd-peer": event.peer_id, "x-swarmd-path": event.path, "x-swarmd-attempts": str(event.attempts)}


def named(asks: Sequence[AskRequest], response_id: str) -> list[AskRequest]:
    """The asks with ids by which `swarmd why` finds them: the response's own, numbered where there are several."""
    several = len(asks) > 1
    return [replace(ask, id=f"{response_id}-{place}" if several else response_id) for place, ask in enumerate(asks)]


def usage_of(results: Sequence[ResultEvent]) -> dict[str, int]:
    """OpenAI's usage over all choices: their prompt is counted once."""
    prompt = results[0].usage.prompt_tokens
    completion = sum(result.usage.completion_tokens for result in results)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _side_field(results: Sequence[ResultEvent]) -> dict[str, Any]:
    sides = [side_of(result) for result in results]
    return {"swarm": sides[0] if len(sides) == 1 else sides[0] | {"choices": sides}}


def side_of(result: ResultEvent) -> dict[str, Any]:
    """What OpenAI has no field for."""
    attempts = [attempt.shown() for attempt in result.attempts]
    side = {"peer_id": result.peer_id, "strategy": result.strategy, "attempts": attempts, "round": result.round}
    overhead = None if result.overhead_s is None else round(result.overhead_s * 1000, 1)
    return side | {"path": result.path, "continued": list(result.continued), "overhead_ms": overhead}
