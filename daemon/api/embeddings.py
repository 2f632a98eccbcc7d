"""OpenAI's embeddings endpoint over the mesh: texts in, vectors out as numbers or base64. Maps shapes; decides no peer."""

import base64
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from daemon.api.backend import Backend, EmbedRequest, EmbedResult
from daemon.api.errors import ApiError, json_response, of_remote
from daemon.api.openai import IdSource
from daemon.api.requests import PeerBlock, read_openai, wish_of
from protocol.embedding import MAX_TEXTS, EmbedJob, check_embed_job, write_vector
from protocol.wire.errors import RemoteError
from protocol.wire.ids import is_model_name

NEUTRAL: dict[str, tuple[object, ...]] = {"dimensions": (None,), "user": ()}
"""Fields that the mesh does not offer, as in `requests.NEUTRAL`: engines overlook `dimensions`, or refuse it."""


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/embeddings."""

    input: str | Annotated[list[str | int | list[int]], msgspec.Meta(min_length=1, max_length=MAX_TEXTS)]
    model: str
    encoding_format: Literal["float", "base64"] | None = None
    peer: PeerBlock | None = None


class Embeddings:
    """The handler of /v1/embeddings."""

    def __init__(self, backend: Backend, new_id: IdSource) -> None:
        self._backend = backend
        self._new_id = new_id

    async def create(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        asked = read_openai(EmbeddingRequest, await request.body(), NEUTRAL)
        response_id = f"embd-{self._new_id()}"
        wanted = EmbedRequest(_job(asked), wish=wish_of(asked.peer), id=response_id)
        try:
            result = await self._backend.embed(wanted)
        except RemoteError as error:
            raise of_remote(error, response_id) from None
        return json_response(_shape(result, asked.encoding_format), headers=_headers(result, response_id))


def _job(asked: EmbeddingRequest) -> EmbedJob:
    if not asked.model:
        raise ApiError(400, "invalid_value", "name a 'model': vectors of two models cannot be compared", "model")
    if not is_model_name(asked.model):
        raise ApiError(404, "model_not_found", f"'{asked.model[:64]}' is not a model's name", "model")
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    given = tuple(text for text in texts if isinstance(text, str))
    if len(given) < len(texts):
        raise ApiError(400, "invalid_value", "'input' takes texts: token ids mean something to one tokenizer alone", "input")
    if not all(given):
        raise ApiError(400, "invalid_value", "'input' holds an empty text", "input")
    try:
        return check_embed_job(EmbedJob(given, asked.model))
    except RemoteError as error:
        raise ApiError(413, "prompt_too_long", error.message, "input") from None


def _shape(result: EmbedResult, form: str | None) -> dict[str, Any]:
    def shown(vector: Any) -> object:
        return base64.b64encode(write_vector(vector)).decode() if form == "base64" else list(vector)

    entries = [{"object": "embedding", "index": place, "embedding": shown(one)} for place, one in enumerate(result.vectors)]
    usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    attempts = [attempt.shown() for attempt in result.attempts]
    side = {"peer_id": result.peer_id, "path": result.path, "config_digest": result.config_digest, "attempts": attempts}
    return {"object": "list", "data": entries, "model": result.model, "usage": usage, "swarm": side}


def _headers(result: EmbedResult, response_id: str) -> dict[str, str]:
    return {
        "x-request-id": response_id,
        "x-swarmd-peer": result.peer_id,
        "x-swarmd-path": result.path,
        "x-swarmd-attempts": str(len(result.attempts)),
    }
