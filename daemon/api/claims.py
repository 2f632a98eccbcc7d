"""The control routes for the claims themselves: export, import, check. Shapes JSON; the archive behind them decides."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from crdt_store.archive import FIRST, Page, Place
from crdt_store.audit import Report
from crdt_store.checkpoints import RawRecord
from crdt_store.forks import ForkProof
from crdt_store.store import StorageError
from daemon.api.errors import ApiError, json_response
from daemon.api.requests import read_body

MAX_RECORDS = 4096
"""Claims, and proofs, in one body; 1 MiB holds fewer."""


class _Export(msgspec.Struct, forbid_unknown_fields=True):
    after: Place | None = None


class _Proof(msgspec.Struct, forbid_unknown_fields=True):
    first: RawRecord
    second: RawRecord


class _Import(msgspec.Struct, forbid_unknown_fields=True):
    claims: Annotated[tuple[RawRecord, ...], msgspec.Meta(max_length=MAX_RECORDS)] = ()
    proofs: Annotated[tuple[_Proof, ...], msgspec.Meta(max_length=MAX_RECORDS)] = ()


class Archive(Protocol):
    """What the routes need of `daemon.claim_archive.ClaimArchive`."""

    def page(self, after: Place) -> Page: ...
    async def take(self, proofs: Sequence[ForkProof], claims: Sequence[bytes]) -> dict[str, Any]: ...
    async def check(self) -> Report: ...


class ClaimControl:
    """The handlers under /swarmd/v1/reputation/ that POST. Claims travel in base64."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def routes(self) -> list[Route]:
        """Every route for claims."""
        return [
            Route("/swarmd/v1/reputation/export", self.export, methods=["POST"]),
            Route("/swarmd/v1/reputation/import", self.take, methods=["POST"]),
            Route("/swarmd/v1/reputation/check", self.check, methods=["POST"]),
        ]

    async def export(self, request: Request) -> Response:
        wish: _Export = read_body(_Export, await request.body())
        found = self._archive.page(wish.after or FIRST)
        records = [
            {"first": record.first, "second": record.second} if isinstance(record, ForkProof) else record
            for record in found.records
        ]
        return json_response({"records": records, "last": found.last})

    async def take(self, request: Request) -> Response:
        given: _Import = read_body(_Import, await request.body())
        proofs = [ForkProof(proof.first, proof.second) for proof in given.proofs]
        try:
            return json_response(await self._archive.take(proofs, given.claims))
        except StorageError as error:
            raise ApiError(507, "storage", str(error)) from None

    async def check(self, request: Request) -> Response:
        try:
            return json_response(asdict(await self._archive.check()))
        except StorageError as error:
            raise ApiError(500, "storage", str(error)) from None
