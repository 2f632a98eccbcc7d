"""The control routes for files: what is shared, seed, pull, push, remove. Shapes JSON; the exchange behind them decides."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.api.control import error_event
from daemon.api.errors import ApiError, json_response
from daemon.api.requests import read_body
from daemon.api.stream import AskStream, sse
from daemon.content.events import Emit, PullEvent, PullProgress, PullResult, SharedFile
from protocol.content.messages import FileName
from protocol.wire.ids import Hash, PeerId, PeerIdField

Address = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class _Seed(msgspec.Struct, forbid_unknown_fields=True):
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class _Pull(msgspec.Struct, forbid_unknown_fields=True):
    address: Address
    peers: Annotated[tuple[PeerIdField, ...], msgspec.Meta(max_length=16)] = ()
    name: FileName | None = None


class _Push(msgspec.Struct, forbid_unknown_fields=True):
    peer: PeerIdField
    file: str


class _Remove(msgspec.Struct, forbid_unknown_fields=True):
    file: str


class Exchange(Protocol):
    """What the routes need of `daemon.content.exchange.ContentExchange`."""

    def files(self) -> list[dict[str, Any]]: ...
    async def offered(self, peer: PeerId | None) -> list[dict[str, Any]]: ...
    async def seed(self, path: Path) -> SharedFile: ...
    async def remove(self, text: str) -> SharedFile: ...
    async def push(self, peer: PeerId, text: str) -> SharedFile: ...
    async def pull(self, address: Hash, peers: Sequence[PeerId], name: str, emit: Emit) -> None: ...


class ContentControl:
    """The handlers under /swarmd/v1/content."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def routes(self) -> list[Route]:
        """Every route for files."""
        return [
            Route("/swarmd/v1/content", self.files),
            Route("/swarmd/v1/content/offered", self.offered),
            Route("/swarmd/v1/content/seed", self.seed, methods=["POST"]),
            Route("/swarmd/v1/content/pull", self.pull, methods=["POST"]),
            Route("/swarmd/v1/content/push", self.push, methods=["POST"]),
            Route("/swarmd/v1/content/remove", self.remove, methods=["POST"]),
        ]

    async def files(self, request: Request) -> Response:
        return json_response({"files": self._exchange.files()})

    async def offered(self, request: Request) -> Response:
        return json_response({"files": await self._exchange.offered(None)})

    async def seed(self, request: Request) -> Response:
        path = Path(read_body(_Seed, await request.body()).path)
        if not path.is_absolute():
            raise ApiError(400, "invalid_value", "'path' must be absolute: the daemon has another working folder", "path")
        return json_response(_shown(await self._exchange.seed(path)))

    async def push(self, request: Request) -> Response:
        wish = read_body(_Push, await request.body())
        return json_response(_shown(await self._exchange.push(PeerId(wish.peer), wish.file)))

    async def remove(self, request: Request) -> Response:
        return json_response(_shown(await self._exchange.remove(read_body(_Remove, await request.body()).file)))

    async def pull(self, request: Request) -> Response:
        wish = read_body(_Pull, await request.body())
        address = Hash(bytes.fromhex(wish.address))
        peers = [PeerId(peer) for peer in wish.peers]

        async def work(emit: Callable[[PullEvent], Awaitable[None]]) -> None:
            await self._exchange.pull(address, peers, wish.name or "", emit)

        return AskStream(work, pull_events, error_event, is_last=lambda event: isinstance(event, PullResult))


def pull_events(event: PullEvent) -> Iterable[bytes]:
    """A pull's events as they are streamed."""
    match event:
        case PullProgress():
            yield sse({"done": event.done, "size": event.size, "fetched": event.fetched, "sources": event.sources}, "progress")
        case PullResult():
            shape = _shown(event.file) | {
                "fetched": event.fetched,
                "elapsed_s": round(event.elapsed_s, 3),
                "by_peer": dict(event.by_peer),
                "dropped": dict(event.dropped),
            }
            yield sse(shape, "result")


def _shown(file: SharedFile) -> dict[str, Any]:
    return {"address": file.address.hex(), "name": file.name, "size": file.size, "path": str(file.path)}
