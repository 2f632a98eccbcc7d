"""Content as the daemon's owner sees it: seed, pull, push, list, remove. Decides what may come in, how much, and from whom."""

import contextlib
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import structlog
import trio

from daemon.calls import Calls, InboundCall
from daemon.content.events import Emit, PullEvent, PullProgress, PullResult, SharedFile
from daemon.content.fetching import BULK, SMALL_SECONDS, Fetching, fetch_manifest
from daemon.content.formats import FormatError, model_suffix
from daemon.content.part_file import PartFile
from daemon.content.serving import ContentServing, Partial
from daemon.content.shelf import Shelf, ShelfError, file_name
from daemon.transport.interface import Transport, TransportError
from dht.records import content_key
from protocol.content import messages
from protocol.content.manifest import Manifest
from protocol.wire.codec import decode, encode
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import Hash, PeerId, short

log = structlog.get_logger("swarmd.content")

MAX_PULLS = 4
MAX_ASKED = 16
"""Connected peers that are asked what they share, or whether they share a file, beside those that the DHT names."""

SPARE_DISK_BYTES = 256 << 20
"""Left free on the disk whatever the quota says: the claims and the logs need room too."""

_PROVIDE_SECONDS = 5.0
_PROGRESS_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class ContentPolicy:
    """What the owner allows. `quota` in bytes of the folder; `upload` in bytes a second, 0 without limit; `accept_from`: peers
    that may push files to us.
    """

    quota: int
    upload: float
    accept_from: frozenset[str] = frozenset()


class ContentExchange:
    """The files that this peer shares and fetches."""

    def __init__(self, folder: Path, calls: Calls, transport: Transport, policy: ContentPolicy, rng: Random) -> None:
        self._shelf = Shelf(folder)
        self._calls = calls
        self._transport = transport
        self._policy = policy
        self._rng = rng
        self._partial: dict[bytes, Partial] = {}
        self._unprovided: set[str] = {content_key(one.address) for one in self._shelf.files()}
        self._news = trio.Event()
        self._nursery: trio.Nursery | None = None
        self.serving = ContentServing(self._shelf, self._partial, policy.upload)

    async def run(
        self,
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,  # type: ignore[name-defined]  # libp2p's trio-typing hides it
    ) -> None:
        """Answer peers, and say in the DHT what we share, until cancelled."""
        self.serving.serve(self._calls)
        self._calls.serve(messages.TAKE_METHOD, self._take)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await self._provide()
                with trio.move_on_after(_PROVIDE_SECONDS if self._unprovided else float("inf")):
                    await self._news.wait()
                self._news = trio.Event()

    # ---- what the owner asks for

    def files(self) -> list[dict[str, Any]]:
        """The shared files, and those on their way here, as JSON."""
        whole = [_file_view(one) | {"done": one.size} for one in self._shelf.files()]
        coming = [
            {"address": address.hex(), "name": None, "size": manifest.size, "done": _done(manifest, part), "path": str(part.path)}
            for address, (manifest, _, part) in self._partial.items()
        ]
        return whole + coming

    async def offered(self, peer: PeerId | None) -> list[dict[str, Any]]:
        """What connected peers share, or that one; a peer that does not answer is left out."""
        found: dict[Hash, dict[str, Any]] = {}

        async def ask(one: PeerId) -> None:
            try:
                shelf = await self._list_of(one)
            except RemoteError as error:
                if peer is not None:
                    raise
                log.debug("a peer did not say what it shares", peer=short(one), reason=str(error))
                return
            for file in shelf.files:
                row = found.setdefault(
                    Hash(file.address), {"address": file.address.hex(), "name": file.name, "size": file.size, "peers": []}
                )
                row["peers"].append(one)

        async with trio.open_nursery() as nursery:
            for one in [peer] if peer is not None else sorted(self._transport.paths())[:MAX_ASKED]:
                nursery.start_soon(ask, one)
        return sorted(found.values(), key=lambda row: (row["name"], row["address"]))

    async def seed(self, path: Path) -> SharedFile:
        """Hash a model file and share it where it lies; raises RemoteError(refused)."""
        try:
            file = await trio.to_thread.run_sync(self._shelf.add, path)
        except (ShelfError, FormatError) as error:
            raise RemoteError(Code.REFUSED, str(error)) from None
        except OSError as error:
            raise RemoteError(Code.REFUSED, f"{path} cannot be shared: {error.strerror}") from None
        self._announce(file.address)
        return file

    async def remove(self, text: str) -> SharedFile:
        """Share a file no more; what was fetched is deleted."""
        file = self._shelf.named(text)
        self._unprovided.discard(content_key(file.address))
        self._transport.unprovide(content_key(file.address))
        await trio.to_thread.run_sync(self._shelf.remove, file.address)
        return file

    async def push(self, peer: PeerId, text: str) -> SharedFile:
        """Ask `peer` to fetch a shared file from us; returns once it has begun."""
        file = self._shelf.named(text)
        offered = messages.Offered(file.address, file.name, file.size)
        await self._calls.unary(peer, messages.TAKE_METHOD, encode(offered), timeout=SMALL_SECONDS)
        return file

    async def pull(self, address: Hash, peers: Sequence[PeerId], name: str, emit: Emit) -> None:
        """Fetch `address`, also from `peers`, and share it; the last event is a PullResult. A pull that ends early is resumed
        by the next one. Raises RemoteError.
        """
        started = trio.current_time()
        with contextlib.suppress(RemoteError):
            await emit(PullResult(self._shelf.find(address), 0, 0.0, {}, {}))
            return
        if address in self._partial:
            raise RemoteError(Code.REFUSED, "this file is being fetched already")
        if len(self._partial) >= MAX_PULLS:
            raise RemoteError(Code.OVERLOADED, f"{MAX_PULLS} files are being fetched, which is the most", retry_after=30.0)
        find = self._finder(address, peers)
        manifest, raw, source = await self._manifest(address, await find())
        await trio.to_thread.run_sync(self._check_room, address, manifest)
        wish = name or await self._name_of(source, address)
        part = await trio.to_thread.run_sync(PartFile, self._shelf.folder, address.hex(), manifest)
        if address in self._partial:
            part.close()
            raise RemoteError(Code.REFUSED, "this file is being fetched already")
        self._partial[address] = (manifest, raw, part)
        try:
            fetching = Fetching(self._calls, address, manifest, part, self._rng)
            self._announce(address)
            await self._fetch(fetching, part, manifest, find, emit)
            file = await trio.to_thread.run_sync(self._keep, address, raw, part, wish)
        except OSError as error:
            raise RemoteError(Code.REFUSED, f"the disk takes no more of it: {error.strerror}") from None
        except (FormatError, ShelfError) as error:
            raise RemoteError(Code.REFUSED, f"what was fetched is not kept: {error}") from None
        finally:
            await self._put_away(address, part)
        tally = fetching.tally
        await emit(PullResult(file, tally.fetched, trio.current_time() - started, tally.by_peer, tally.dropped))

    # ---- the pull's steps

    def _finder(self, address: Hash, peers: Sequence[PeerId]) -> Callable[[], Awaitable[Mapping[PeerId, tuple[str, ...]]]]:
        async def find() -> Mapping[PeerId, tuple[str, ...]]:
            found: dict[PeerId, tuple[str, ...]] = dict.fromkeys(peers, ())
            try:
                found |= await self._transport.find_providers(content_key(address))
            except TransportError as error:
                log.debug("the DHT could not be asked for content", reason=str(error))
            for peer in sorted(self._transport.paths())[:MAX_ASKED]:
                found.setdefault(peer, ())
            found.pop(self._transport.peer_id, None)
            return found

        return find

    async def _manifest(self, address: Hash, sources: Mapping[PeerId, tuple[str, ...]]) -> tuple[Manifest, bytes, PeerId]:
        for peer, addresses in sources.items():
            try:
                await self._transport.connect(peer, addresses)
                return *(await fetch_manifest(self._calls, peer, address)), peer
            except (RemoteError, TransportError) as error:
                log.debug("a peer gave no manifest", peer=short(peer), reason=str(error))
        asked = f"none of the {len(sources)} peers asked" if sources else "no peer"
        reason = f"{asked} shares {address.hex()[:16]}...; swarmd models list --peers shows what is shared"
        raise RemoteError(Code.NOT_FOUND, reason)

    def _check_room(self, address: Hash, manifest: Manifest) -> None:
        begun = self._shelf.folder / f"{address.hex()}.part"
        # A part file is sparse: its blocks, not its size, are what it has taken of the disk.
        taken = begun.stat().st_blocks * 512 if begun.exists() else 0
        held = self._shelf.held_bytes() - (begun.stat().st_size if begun.exists() else 0)
        coming = sum(other.size for key, (other, _, _) in self._partial.items() if key != address)
        if held + coming + manifest.size > self._policy.quota:
            room = max(0, self._policy.quota - held - coming)
            reason = f"the file has {manifest.size >> 20} MiB and content.quota_gib leaves {room >> 20} MiB; remove a file"
            raise RemoteError(Code.REFUSED, reason)
        free = shutil.disk_usage(self._shelf.folder).free
        if manifest.size - taken > free - SPARE_DISK_BYTES:
            raise RemoteError(Code.REFUSED, f"the file has {manifest.size >> 20} MiB and the disk has {free >> 20} MiB free")

    async def _name_of(self, peer: PeerId, address: Hash) -> str:
        with contextlib.suppress(RemoteError):
            for file in (await self._list_of(peer)).files:
                if file.address == address:
                    return file.name
        return ""

    async def _list_of(self, peer: PeerId) -> messages.Shelf:
        raw = await self._calls.unary(peer, messages.LIST_METHOD, b"", timeout=SMALL_SECONDS, options=BULK)
        return decode(messages.Shelf, raw, messages.MAX_SHELF_BYTES)

    async def _fetch(
        self,
        fetching: Fetching,
        part: PartFile,
        manifest: Manifest,
        find: Callable[[], Awaitable[Mapping[PeerId, tuple[str, ...]]]],
        emit: Emit,
    ) -> None:
        async def show() -> None:
            while True:
                await emit(PullProgress(_done(manifest, part), manifest.size, fetching.tally.fetched, fetching.sources))
                await trio.sleep(_PROGRESS_SECONDS)

        failure: RemoteError | OSError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show)
            # What it fails with must leave as itself, not inside the nursery's exception group.
            try:
                await fetching.run(find, self._transport.connect)
            except (RemoteError, OSError) as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def _keep(self, address: Hash, raw: bytes, part: PartFile, wish: str) -> SharedFile:
        try:
            suffix = model_suffix(part.path)
        except FormatError:
            part.discard()
            raise
        name = file_name(wish, address, suffix)
        target = self._shelf.folder / name
        if target.exists():
            name = f"{name.removesuffix(suffix)}-{address.hex()[:8]}{suffix}"
            target = self._shelf.folder / name
        part.finish(target)
        return self._shelf.put(address, raw, target, name, fetched=True)

    async def _put_away(self, address: Hash, part: PartFile) -> None:
        """Nobody is given chunks of it any more; what there is stays for the next pull."""

        def close() -> None:
            with contextlib.suppress(OSError):
                part.close()

        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(close)
        self._partial.pop(address, None)

    # ---- the mesh

    async def _take(self, call: InboundCall) -> bytes:
        offered = decode(messages.Offered, call.body, messages.MAX_REQUEST_BYTES)
        await trio.lowlevel.checkpoint()
        if call.peer not in self._policy.accept_from:
            raise RemoteError(Code.REFUSED, "this peer takes files only from peers that its owner named in content.accept_from")
        if len(self._partial) >= MAX_PULLS:
            raise RemoteError(Code.OVERLOADED, "too many files are being fetched", retry_after=30.0)
        if self._nursery is not None:
            self._nursery.start_soon(self._pull_pushed, call.peer, offered)
        return b""

    async def _pull_pushed(self, peer: PeerId, offered: messages.Offered) -> None:
        async def ignore(event: PullEvent) -> None:
            await trio.lowlevel.checkpoint()

        try:
            await self.pull(Hash(offered.address), (peer,), offered.name, ignore)
            log.info("a pushed file was fetched", peer=short(peer), name=offered.name)
        except RemoteError as error:
            log.warning("a pushed file was not fetched", peer=short(peer), name=offered.name, reason=str(error))

    def _announce(self, address: Hash) -> None:
        self._unprovided.add(content_key(address))
        self._news.set()

    async def _provide(self) -> None:
        for key in list(self._unprovided):
            if not self._transport.paths():
                return
            try:
                await self._transport.provide(key)
                self._unprovided.discard(key)
            except TransportError as error:
                log.debug("content was not announced", reason=str(error))


def _done(manifest: Manifest, part: PartFile) -> int:
    return sum(manifest.length(index) for index in part.present)


def _file_view(file: SharedFile) -> dict[str, Any]:
    return {"address": file.address.hex(), "name": file.name, "size": file.size, "path": str(file.path), "fetched": file.fetched}
