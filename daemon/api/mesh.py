"""The control routes for a private mesh: its invites, their revocation. Shapes JSON; the desk behind them decides."""

from typing import Annotated, Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.api.errors import json_response, of_remote
from daemon.api.requests import read_body
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId, PeerIdField


class _Create(msgspec.Struct, forbid_unknown_fields=True):
    expires_s: Annotated[float, msgspec.Meta(gt=0, le=366 * 24 * 3600)]
    recipient: PeerIdField | None = None
    may_invite: bool = False


class _Revoke(msgspec.Struct, forbid_unknown_fields=True):
    named: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Desk(Protocol):
    """What the routes need of `daemon.invite_desk.InviteDesk`."""

    async def create(self, recipient: PeerId | None, expires_ms: int, may_invite: bool) -> dict[str, Any]: ...
    def rows(self) -> list[dict[str, Any]]: ...
    async def revoke(self, named: str) -> dict[str, Any]: ...


class MeshControl:
    """The handlers under /swarmd/v1/invites."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[Route]:
        """Every route for invites."""
        return [
            Route("/swarmd/v1/invites", self.invites),
            Route("/swarmd/v1/invites/create", self.create, methods=["POST"]),
            Route("/swarmd/v1/invites/revoke", self.revoke, methods=["POST"]),
        ]

    async def invites(self, request: Request) -> Response:
        try:
            return json_response({"invites": self._desk.rows()})
        except RemoteError as error:
            raise of_remote(error) from None

    async def create(self, request: Request) -> Response:
        wish: _Create = read_body(_Create, await request.body())
        recipient = PeerId(wish.recipient) if wish.recipient is not None else None
        try:
            return json_response(await self._desk.create(recipient, int(wish.expires_s * 1000), wish.may_invite))
        except RemoteError as error:
            raise of_remote(error) from None

    async def revoke(self, request: Request) -> Response:
        wish: _Revoke = read_body(_Revoke, await request.body())
        try:
            return json_response(await self._desk.revoke(wish.named))
        except RemoteError as error:
            raise of_remote(error) from None
