"""The one ASGI app of the local API: routes, who may use which, and errors in OpenAI's shape. Owns no socket."""

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Mapping, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from daemon.api.backend import Backend
from daemon.api.control import Control
from daemon.api.embeddings import Embeddings
from daemon.api.errors import ApiError, error_response, json_response, of_remote
from daemon.api.openai import Clock, IdSource, OpenAi
from daemon.api.responses import Responses
from daemon.api.server import Listener
from protocol.wire.errors import RemoteError


def build_app(
    backend: Backend, registry: CollectorRegistry, key: str | None, now: Clock, new_id: IdSource, more: Sequence[Route] = ()
) -> ASGIApp:
    """The app; `key` is the API key that loopback clients must present, None where none is required; `more`: control
    routes of other parts.
    """
    openai = OpenAi(backend, now, new_id)

    async def health(request: Request) -> Response:
        return json_response({"status": "alive"})

    async def ready(request: Request) -> Response:
        is_ready, reasons = backend.readiness()
        return json_response({"ready": is_ready, "reasons": list(reasons)}, 200 if is_ready else 503)

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    routes = [
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", metrics),
        Route("/v1/models", openai.models),
        Route("/v1/models/{name:path}", openai.model),
        Route("/v1/chat/completions", openai.chat, methods=["POST"]),
        Route("/v1/completions", openai.completions, methods=["POST"]),
        Route("/v1/responses", Responses(backend, now, new_id).create, methods=["POST"]),
        Route("/v1/embeddings", Embeddings(backend, new_id).create, methods=["POST"]),
        *Control(backend, new_id).routes(),
        *more,
    ]
    handlers = {ApiError: _on_api_error, RemoteError: _on_remote_error, HTTPException: _on_http_error}
    posts = {"/v1/chat/completions": openai.chat, "/v1/completions": openai.completions}
    templates: dict[object, str] = {}
    for route in routes:
        templates.setdefault(route.endpoint, route.path)
    return Doorkeeper(Shortcuts(Starlette(routes=routes, exception_handlers=handlers), posts), key, templates)


def template_of(scope: Scope) -> str:
    """The path of the route that a request found, with names for what varies in it; "none" where it found none."""
    templates: Mapping[object, str] = scope.get("swarmd.templates", {})
    return templates.get(scope.get("endpoint"), "none")


Endpoint = Callable[[Request], Awaitable[Response]]


class Shortcuts:
    """Finds the posts that are made most by their paths alone; Starlette's way to a route costs a tenth of what an answer may."""

    def __init__(self, app: ASGIApp, posts: Mapping[str, Endpoint]) -> None:
        self._app = app
        self._posts = posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._posts.get(scope["path"])
        if endpoint is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["endpoint"] = endpoint
        answer: Callable[[Scope, Receive, Send], Awaitable[None]]
        try:
            answer = await endpoint(Request(scope, receive, send))
        except ApiError as error:
            answer = error_response(error)
        except RemoteError as error:
            answer = error_response(of_remote(error))
        await answer(scope, receive, send)


class Doorkeeper:
    """Refuses what should not reach a route: foreign hosts and origins, control calls over TCP, a missing key, non-JSON posts."""

    def __init__(self, app: ASGIApp, key: str | None, templates: Mapping[object, str]) -> None:
        self._app = app
        self._key = key
        self._templates = templates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["swarmd.templates"] = self._templates
        refusal = self._refusal(scope)
        answer: Callable[[Scope, Receive, Send], Awaitable[None]] = error_response(refusal) if refusal else self._app
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        listener: Listener = scope["state"]["listener"]
        headers = _single_headers(scope)
        if headers is None:
            return ApiError(400, "bad_request", "a header that may stand once stands twice")
        if listener.kind == "tcp":
            refusal = _loopback_refusal(scope["path"], headers, listener.port, self._key)
            if refusal is not None:
                return refusal
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        if scope["method"] == "POST" and has_body and kind != b"application/json":
            return ApiError(415, "unsupported_media_type", "send the body as Content-Type: application/json")
        return None


def _single_headers(scope: Scope) -> dict[bytes, bytes] | None:
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in headers and name in (b"host", b"origin", b"authorization", b"content-type", b"content-length"):
            return None
        headers[name] = value
    return headers


def _is_this_box(host: str) -> bool:
    """Whether a Host header names loopback: by an address of it, or by the one name that no foreign server can answer for."""
    if host in ("127.0.0.1", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _loopback_refusal(path: str, headers: dict[bytes, bytes], port: int, key: str | None) -> ApiError | None:
    """Host is the check against DNS rebinding (a rebound page is same-origin and sends no Origin); Origin against other pages."""
    host, _, named_port = headers.get(b"host", b"").decode("latin-1").rpartition(":")
    if key is None and (not _is_this_box(host.lower()) or named_port != str(port)):
        return ApiError(421, "misdirected_request", "the Host header must name this loopback address and port")
    if b"origin" in headers:
        return ApiError(403, "origin_refused", "requests from web pages of other origins are refused")
    if path.startswith("/swarmd/"):
        return ApiError(403, "socket_only", "control calls are served on the Unix socket alone")
    if key is not None and path.startswith(("/v1/", "/metrics")):
        scheme, _, presented = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(presented, key.encode()):
            return ApiError(401, "invalid_api_key", "a valid API key is required: Authorization: Bearer <key>")
    return None


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - Starlette dispatches by this very type
    return error_response(error)


async def _on_remote_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RemoteError)  # noqa: S101 - Starlette dispatches by this very type
    return error_response(of_remote(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - Starlette dispatches by this very type
    path = request.url.path[:64]
    said = {404: f"there is nothing at {path}; OpenAI's begin with /v1/", 405: f"{path} takes no {request.method[:16]}"}
    code = "not_found" if error.status_code == 404 else "bad_request"
    response = error_response(ApiError(error.status_code, code, said.get(error.status_code, error.detail)))
    response.headers.update(error.headers or {})
    return response
