"""The control routes, on the Unix socket alone: what the CLI's verbs call. Shapes JSON; decides nothing."""

from collections.abc import Iterable
from dataclasses import asdict
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.api.backend import AskEvent, Backend, EstimateEvent, ProgressEvent, ResultEvent, TokenEvent
from daemon.api.errors import ApiError, json_response
from daemon.api.openai import IdSource
from daemon.api.requests import fresh_seed, read_control, read_probe
from daemon.api.stream import AskStream, sse
from daemon.version import version


def ask_events(event: AskEvent) -> Iterable[bytes]:
    """An ask's events as the control API streams them."""
    match event:
        case TokenEvent(text):
            yield sse({"text": text}, "token")
        case EstimateEvent():
            yield sse(asdict(event), "estimate")
        case ProgressEvent():
            yield sse(asdict(event), "progress")
        case ResultEvent():
            usage = {"prompt_tokens": event.usage.prompt_tokens, "completion_tokens": event.usage.completion_tokens}
            round_id = event.round["round_id"] if event.round else None
            shape = {
                "answer": event.answer,
                "peer_id": event.peer_id,
                "model": event.model,
                "strategy": event.strategy,
                "finish_reason": event.finish_reason,
                "path": event.path,
                "round_id": round_id,
                "attempts": [attempt.shown() for attempt in event.attempts],
                "continued": list(event.continued),
                "why": event.why,
                "ask_id": event.ask_id or None,
                "round": event.round,
                "verification": event.verification,
                "usage": usage,
                "elapsed_s": round(event.elapsed_s, 3),
            }
            yield sse(shape, "result")


def error_event(error: ApiError) -> bytes:
    """How an ask that began to stream ends badly."""
    return sse({"code": error.code, "message": error.message}, "error")


def _is_result(event: AskEvent) -> bool:
    """Whether the client leaves once it has this: what ended after it would count as left."""
    return isinstance(event, ResultEvent)


class Control:
    """The handlers under /swarmd/v1/."""

    def __init__(self, backend: Backend, new_id: IdSource) -> None:
        self._backend = backend
        self._new_id = new_id

    def routes(self) -> list[Route]:
        """Every control route."""
        return [
            Route("/swarmd/v1/version", self.version),
            Route("/swarmd/v1/status", self.status),
            Route("/swarmd/v1/peers", self.peers),
            Route("/swarmd/v1/models", self.models),
            Route("/swarmd/v1/rounds", self.rounds),
            Route("/swarmd/v1/rounds/{round_id:path}", self.round),
            Route("/swarmd/v1/rounds/{round_id:path}/verify", self.verify, methods=["POST"]),
            Route("/swarmd/v1/asks", self.asks),
            Route("/swarmd/v1/asks/{ask_id:path}", self.asked),
            Route("/swarmd/v1/why/{named:path}", self.why),
            Route("/swarmd/v1/config", self.config),
            Route("/swarmd/v1/netcheck", self.netcheck),
            Route("/swarmd/v1/lookup/{what:path}", self.lookup),
            Route("/swarmd/v1/ping/{peer_id:path}", self.ping, methods=["POST"]),
            Route("/swarmd/v1/reputation", self.reputation),
            Route("/swarmd/v1/reputation/{peer_id:path}", self.reputation),
            Route("/swarmd/v1/ask", self.ask, methods=["POST"]),
            Route("/swarmd/v1/probe", self.probe, methods=["POST"]),
            Route("/swarmd/v1/stop", self.stop, methods=["POST"]),
        ]

    async def version(self, request: Request) -> Response:
        return json_response({"version": version()})

    async def status(self, request: Request) -> Response:
        return json_response(await self._backend.status())

    async def peers(self, request: Request) -> Response:
        return json_response(await self._backend.peers())

    async def models(self, request: Request) -> Response:
        return json_response(await self._backend.models())

    async def rounds(self, request: Request) -> Response:
        return json_response(await self._backend.rounds())

    async def round(self, request: Request) -> Response:
        return json_response(await self._backend.round(request.path_params["round_id"]))

    async def verify(self, request: Request) -> Response:
        return json_response(await self._backend.verify(request.path_params["round_id"]))

    async def asks(self, request: Request) -> Response:
        return json_response(await self._backend.asks())

    async def asked(self, request: Request) -> Response:
        return json_response(await self._backend.ask_note(request.path_params["ask_id"]))

    async def why(self, request: Request) -> Response:
        return json_response(await self._backend.why(request.path_params["named"]))

    async def config(self, request: Request) -> Response:
        return json_response(await self._backend.config())

    async def netcheck(self, request: Request) -> Response:
        return json_response(await self._backend.netcheck())

    async def lookup(self, request: Request) -> Response:
        return json_response(await self._backend.lookup(request.path_params["what"]))

    async def ping(self, request: Request) -> Response:
        return json_response(await self._backend.ping(request.path_params["peer_id"]))

    async def reputation(self, request: Request) -> Response:
        return json_response(await self._backend.reputation(request.path_params.get("peer_id")))

    async def ask(self, request: Request) -> Response:
        asked = read_control(await request.body(), fresh_seed(self._new_id()))
        return AskStream(partial(self._backend.ask, asked), ask_events, error_event, is_last=_is_result)

    async def probe(self, request: Request) -> Response:
        return json_response(await self._backend.probe(read_probe(await request.body())))

    async def stop(self, request: Request) -> Response:
        await self._backend.stop()
        return json_response({"stopping": True})
