"""Errors as HTTP says them: OpenAI's shape, a stable code, and the status that fits. Decides no retry."""

import re
from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from protocol.wire.errors import Code, RemoteError

STATUS: Mapping[Code, int] = {
    Code.MALFORMED: 400,
    Code.OVERSIZED: 413,
    Code.BAD_SIGNATURE: 502,
    Code.UNSUPPORTED: 400,
    Code.NOT_FOUND: 404,
    Code.REFUSED: 403,
    Code.OVERLOADED: 503,
    Code.DEADLINE: 504,
    Code.CANCELLED: 499,
    Code.GONE: 502,
    Code.ENGINE_FAILED: 502,
    Code.INTERNAL: 500,
}


_PARAMETER = re.compile(r"'(tools|tool_choice|response_format|logprobs|messages|peer)'")
"""A parameter that a refusal names: one of these words in quotes, whoever wrote the sentence."""

_NO_MODEL = re.compile(r"no reachable peer serves (?!any model;)")
"""How a question for a model that nobody serves is refused (`daemon.asking`, `daemon.embedding`)."""


class ApiError(Exception):
    """A request that is refused with one clear sentence. `param` names the field at fault, None where none is.

    `request_id` is that of an ask that was begun, by which `swarmd why` finds it.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.request_id: str | None = None


def of_remote(error: RemoteError, request_id: str | None = None) -> ApiError:
    """The HTTP face of a mesh error."""
    if error.code is Code.NOT_FOUND and _NO_MODEL.match(error.message):
        return ApiError(404, "model_not_found", error.message, "model")
    named = _PARAMETER.search(error.message) if error.code in (Code.UNSUPPORTED, Code.MALFORMED, Code.NOT_FOUND) else None
    param = named.group(1) if named is not None else None
    shown = ApiError(STATUS[error.code], str(error.code), error.message, param, error.retry_after)
    shown.request_id = request_id
    return shown


def error_object(error: ApiError) -> dict[str, object]:
    """OpenAI's error object."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": error.message, "type": kind, "code": error.code, "param": error.param}}


def error_response(error: ApiError) -> Response:
    """OpenAI's error object as a response, with Retry-After (whole seconds) where it is known."""
    headers = {} if error.request_id is None else {"x-request-id": error.request_id}
    if error.retry_after is not None or error.status in (429, 503):
        headers["retry-after"] = str(max(1, round(error.retry_after or 1)))
    return json_response(error_object(error), error.status, headers)


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` as JSON."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
