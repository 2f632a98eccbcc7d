"""Members of a private mesh over real connections: admission, two users of one invite, revocations that reach everybody."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from crdt_store.claims import Kind
from daemon.calls import Calls
from daemon.invite_desk import InviteDesk
from daemon.mesh_folder import Kept, MeshFolder, MeshFolderError
from daemon.private_mesh import ADMIT_METHOD, PrivateMesh, open_private_mesh
from daemon.transport.host import Libp2pTransport
from daemon.transport.interface import TransportError
from daemon.transport.options import TransportOptions
from dht.grants import Grant, Rights, sign_grant
from dht.invites import InviteBook, accept, read_invite
from dht.revocations import MAX_REVOCATIONS, Revocation, sign_revocation
from protocol.wire.envelope import public_bytes
from protocol.wire.errors import RemoteError
from protocol.wire.ids import Hash, PeerId, peer_id_of
from tests.waiting import until

pytestmark = [pytest.mark.live, pytest.mark.slow]


class Clock:
    now = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now


class Box:
    """One daemon's part that a private mesh needs."""

    def __init__(self, base: Path, seed: int, clock: Clock) -> None:
        self.folder = MeshFolder(base / str(seed))
        self.folder.folder.mkdir(mode=0o700)
        self.key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self.peer_id = peer_id_of(public_bytes(self.key))
        self.clock = clock
        self.claims: list[Any] = []

    def found(self) -> "Box":
        self.folder.write(Kept("home", self.peer_id, bytes(16), bytes(range(32))))
        return self

    def join(self, text: str) -> "Box":
        invite = read_invite(text, self.key, self.clock())
        mesh = invite.mesh
        chain = accept(invite, self.key, self.clock())
        self.folder.write(Kept(mesh.name, mesh.founder, mesh.salt, invite.key, chain, invite.addresses))
        return self

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Box"]:
        opened = open_private_mesh(self.folder.folder, self.key, self.clock, Random(1))
        assert opened is not None
        self.mesh: PrivateMesh = opened
        options = TransportOptions(listen=("/ip4/127.0.0.1/tcp/0",), udp=False)
        self.transport = Libp2pTransport(self.key, options, gate=self.mesh.gate())
        self.calls = Calls(self.transport)
        self.desk = InviteDesk(self.mesh, self.transport, self.calls, self.claims.extend)
        self.mesh.attach(self.transport, self.calls)
        async with trio.open_nursery() as nursery:
            for part in (self.transport, self.calls, self.mesh):
                await nursery.start(part.run)
            yield self
            nursery.cancel_scope.cancel()

    async def reach(self, other: "Box") -> None:
        await self.transport.connect(other.peer_id, other.transport.addresses())

    def sees(self, *others: "Box") -> bool:
        return all(other.peer_id in self.transport.paths() for other in others)

    @property
    def provisional(self) -> bool:
        return self.mesh.membership().provisional


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def box(tmp_path: Path, clock: Clock) -> Callable[[int], Box]:
    return lambda seed: Box(tmp_path, seed, clock)


async def invited(founder: Box, newcomer: Box, once: bool = False, expires_ms: int = 3_600_000, **more: Any) -> dict[str, Any]:
    made = await founder.desk.create(None if once else newcomer.peer_id, expires_ms, more.get("may_invite", False))
    newcomer.join(made["invite"])
    return made


@asynccontextmanager
async def one_invited(box: Callable[[int], Box]) -> AsyncIterator[tuple[Box, Box]]:
    """A running founder and who holds its invite."""
    founder, newcomer = box(1).found(), box(2)
    async with founder.running():
        await invited(founder, newcomer)
        yield founder, newcomer


async def test_a_newcomer_is_admitted_for_good_and_stays_when_its_invite_ends(box: Callable[[int], Box], clock: Clock) -> None:
    async with one_invited(box) as (founder, member):
        async with member.running():
            await member.reach(founder)
            await until(lambda: not member.provisional)
            assert [claim.kind for claim in founder.claims] == [Kind.MEMBER_ADMITTED]
            await until(lambda: not founder.mesh.members()[member.peer_id].provisional)
            await until(lambda: member.folder.read() == member.mesh.kept)
            clock.now += 7_200_000
            await trio.sleep(1.2)
            assert founder.sees(member)
        async with member.running():  # what it was given is on its disk
            await member.reach(founder)


async def test_an_invite_that_its_issuer_never_saw_used_ends_with_its_time(box: Callable[[int], Box], clock: Clock) -> None:
    founder, one, two = box(1).found(), box(2), box(3)
    async with founder.running():
        for newcomer in (one, two):
            await invited(founder, newcomer)
    async with one.running(), two.running():
        await one.reach(two)
        assert one.provisional
        assert two.provisional
        clock.now += 3_600_001
        await until(lambda: not one.sees(two) and not two.sees(one))
        with pytest.raises(TransportError, match="expired"):
            await one.reach(two)


async def test_the_second_user_of_an_invite_is_refused(box: Callable[[int], Box]) -> None:
    founder, first, second = box(1).found(), box(2), box(3)
    async with founder.running():
        made = await invited(founder, first, once=True)
        second.join(made["invite"])
        async with first.running(), second.running():
            await first.reach(founder)
            await until(lambda: not first.provisional)
            for door in (founder, first):
                with pytest.raises(TransportError, match="used by another peer"):
                    await second.reach(door)


async def test_the_second_user_is_thrown_out_where_it_was_met_first(box: Callable[[int], Box]) -> None:
    founder, member, first, second = box(1).found(), box(2), box(3), box(4)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(founder.running())
        await invited(founder, member)
        made = await invited(founder, first, once=True)
        second.join(made["invite"])
        for newcomer in (member, first, second):
            await stack.enter_async_context(newcomer.running())
        await member.reach(founder)
        await second.reach(member)
        await first.reach(founder)
        await until(lambda: not first.provisional)
        await first.reach(member)  # with the issuer's own grant, which decides
        await until(lambda: not member.sees(second))


async def test_a_revocation_closes_all_paths_and_is_learned_from_others(box: Callable[[int], Box]) -> None:
    founder, member, late, fallen = box(1).found(), box(2), box(3), box(4)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(founder.running())
        for newcomer in (member, late, fallen):
            await invited(founder, newcomer)
        for newcomer in (member, fallen):
            await stack.enter_async_context(newcomer.running())
            await newcomer.reach(founder)
        await fallen.reach(member)
        await until(lambda: founder.sees(member, fallen) and member.sees(fallen) and not fallen.provisional)
        put_out: list[PeerId] = []
        member.mesh.removed = put_out.append
        said = await founder.desk.revoke(fallen.peer_id[-8:])
        assert said["peer_id"] == fallen.peer_id
        assert Kind.MEMBER_REMOVED in [claim.kind for claim in founder.claims]
        await until(lambda: not founder.sees(fallen) and not member.sees(fallen))
        assert not member.mesh.admits(fallen.peer_id)
        assert put_out == [fallen.peer_id]
        await stack.enter_async_context(late.running())  # it was away when it was said, and never meets the founder
        await late.reach(member)
        await until(lambda: not late.mesh.admits(fallen.peer_id))
        with pytest.raises(TransportError, match="revoked"):
            await fallen.reach(late)
        assert fallen.mesh.problem() is None or "revoked" in fallen.mesh.problem()


async def test_many_revocations_at_once_are_one_file(box: Callable[[int], Box], monkeypatch: pytest.MonkeyPatch) -> None:
    founder, member = box(1).found(), box(2)
    async with founder.running():
        gone = [await founder.desk.create(None, 3_600_000, False) for _ in range(12)]
        await invited(founder, member)
        async with member.running():
            written: list[int] = []
            write = member.folder.write_revocations
            monkeypatch.setattr(member.mesh.folder, "write_revocations", lambda raw: (written.append(len(raw)), write(raw)))
            for one in gone:
                await founder.desk.revoke(one["id"][:8])
            for raw in founder.mesh.revocations.all():
                assert member.mesh._on_gossip(founder.peer_id, raw)
            await until(lambda: bool(written) and written[-1] == 12)
            assert len(written) == 1
            assert len(member.folder.revocations()) == 12
    for one, may_invite in ((founder, True), (member, False)):
        kept = one.folder.read()
        assert kept is not None
        assert kept.may_invite is may_invite


async def test_a_restart_remembers_who_was_removed(box: Callable[[int], Box]) -> None:
    founder, fallen = box(1).found(), box(2)
    async with founder.running():
        made = await invited(founder, fallen)
        await founder.desk.revoke(made["id"][:6])
    async with founder.running(), fallen.running():
        with pytest.raises(TransportError, match="revoked"):
            await fallen.reach(founder)
        assert founder.desk.rows()[0]["state"] == "revoked"


async def test_a_delegate_invites_and_goes_with_those_it_let_in(box: Callable[[int], Box]) -> None:
    founder, delegate, guest = box(1).found(), box(2), box(3)
    async with founder.running():
        await invited(founder, delegate, may_invite=True)
        async with delegate.running():
            await delegate.reach(founder)
            await until(lambda: not delegate.provisional)
            await invited(delegate, guest)
            async with guest.running():
                await guest.reach(delegate)
                await guest.reach(founder)
                await until(lambda: not guest.provisional)
                with pytest.raises(RemoteError, match="may not invite"):
                    await guest.desk.create(None, 1000, False)
                await founder.desk.revoke(delegate.peer_id)
                await until(lambda: not founder.sees(delegate) and not founder.sees(guest))


async def test_what_the_desk_refuses(box: Callable[[int], Box]) -> None:
    founder = box(1).found()
    async with founder.running():
        for recipient, expires, may_invite, says in (
            (founder.peer_id, 1000, False, "this peer itself"),
            (None, 0, False, "366 days"),
            (None, 1000, True, "named peer"),
        ):
            with pytest.raises(RemoteError, match=says):
                await founder.desk.create(recipient, expires, may_invite)
        for named, says in (("nobody", "no invite and no member"), (founder.peer_id, "founder")):
            with pytest.raises(RemoteError, match=says):
                await founder.desk.revoke(named)
    public = InviteDesk(None, founder.transport, founder.calls, founder.claims.extend)
    assert public.view() is None
    with pytest.raises(RemoteError, match="public mesh"):
        await public.create(None, 1000, False)


async def test_a_delegate_gives_no_place_by_the_number_of_anothers_invite(box: Callable[[int], Box]) -> None:
    founder, delegate, asked, guest = box(1).found(), box(2), box(3), box(4)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(founder.running())
        await invited(founder, delegate, may_invite=True)
        await stack.enter_async_context(delegate.running())
        await delegate.reach(founder)
        await until(lambda: not delegate.provisional)
        made = await invited(founder, asked, may_invite=True)
        grant = Grant(delegate.mesh.mesh.id, bytes.fromhex(made["id"]), guest.peer_id, Rights.MEMBER, delegate.clock())
        kept = delegate.mesh.kept
        guest.folder.write(replace(kept, chain=(*kept.chain, sign_grant(grant, delegate.key))))
        await stack.enter_async_context(guest.running())
        await guest.reach(founder)
        with pytest.raises(RemoteError, match="given by another"):
            await guest.calls.unary(founder.peer_id, ADMIT_METHOD, b"", timeout=5)
        await stack.enter_async_context(asked.running())  # nor is the one who was asked kept out
        await asked.reach(founder)
        await until(lambda: not asked.provisional)


async def test_nobody_is_admitted_before_the_disk_knows_and_two_at_once_lose_nothing(box: Callable[[int], Box]) -> None:
    founder, newcomers = box(1).found(), [box(2), box(3), box(4)]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(founder.running())
        for newcomer in newcomers:
            await invited(founder, newcomer)
            await stack.enter_async_context(newcomer.running())
        write, writing, tries = founder.folder.write_invites, 0, 0

        def slow_and_full_at_first(book: InviteBook) -> None:
            nonlocal writing, tries
            writing, tries = writing + 1, tries + 1
            try:
                assert writing == 1, "two at once"
                time.sleep(0.05)
                if tries <= 2:
                    raise OSError(28, "No space left on device")
                write(book)
            finally:
                writing -= 1

        founder.mesh.folder.write_invites = slow_and_full_at_first  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            for newcomer in newcomers:
                nursery.start_soon(newcomer.reach, founder)
        for newcomer in newcomers:
            await until(lambda newcomer=newcomer: not newcomer.provisional, 30)  # type: ignore[misc] # disks may take seconds
            assert newcomer.peer_id in {entry.used_by for entry in MeshFolder(founder.folder.folder).invites().entries}
        assert tries > 2
        admitted = [claim.subject for claim in founder.claims if claim.kind is Kind.MEMBER_ADMITTED]
        assert sorted(admitted) == sorted(newcomer.peer_id for newcomer in newcomers)


async def test_a_newcomer_less_patient_than_the_disk_is_slow_is_admitted_once(
    box: Callable[[int], Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.private_mesh._CALL_SECONDS", 0.1)
    async with one_invited(box) as (founder, newcomer):
        write, books = founder.folder.write_invites, list[InviteBook]()

        def slow(book: InviteBook) -> None:
            books.append(book)
            end = time.monotonic() + 10
            while not founder.calls.outcomes["in", ADMIT_METHOD, "deadline"]:
                assert time.monotonic() < end
                time.sleep(0.01)
            write(book)

        founder.mesh.folder.write_invites = slow  # type: ignore[method-assign]
        async with newcomer.running():
            await newcomer.reach(founder)
            await until(lambda: not newcomer.provisional)
        assert len(books) == 1
        assert [claim.kind for claim in founder.claims] == [Kind.MEMBER_ADMITTED]


async def test_a_grant_that_the_disk_refuses_counts_and_is_written_later(
    box: Callable[[int], Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.private_mesh.ADMIT_SECONDS", 0.05)
    async with one_invited(box) as (founder, member), member.running():
        write, refused = member.folder.write, 0

        def full_at_first(kept: Kept) -> None:
            nonlocal refused
            if refused < 2:
                refused += 1
                raise OSError(28, "No space left on device")
            write(kept)

        member.mesh.folder.write = full_at_first  # type: ignore[method-assign]
        await member.reach(founder)
        await until(lambda: member.folder.read() == member.mesh.kept and not member.provisional)
        assert refused == 2
        await until(lambda: not founder.mesh.members()[member.peer_id].provisional)


async def test_no_invite_is_made_that_would_let_nobody_in(box: Callable[[int], Box]) -> None:
    line = [box(1).found(), *map(box, range(2, 6))]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(line[0].running())
        for above, below in pairwise(line):
            await invited(above, below, may_invite=True)
            await stack.enter_async_context(below.running())
            await below.reach(above)
            await until(lambda below=below: not below.provisional)  # type: ignore[misc]
        assert (await invited(line[2], box(9), once=True))["once"]
        for far, once in ((line[3], True), (line[4], False)):
            with pytest.raises(RemoteError, match="too far from the founder"):
                await invited(far, box(10 + once), once=once)


async def test_a_liar_with_endless_pages_of_revocations_keeps_nobody(box: Callable[[int], Box]) -> None:
    async with one_invited(box) as (founder, liar):
        said = Revocation(founder.mesh.mesh.id, bytes(16), "", founder.clock())
        page, asked = (sign_revocation(said, founder.key),) * 200_000, 0

        def endless() -> tuple[bytes, ...]:
            nonlocal asked
            asked += 1
            return page

        async with liar.running():
            liar.mesh.revocations.all = endless  # type: ignore[method-assign]
            liar.mesh.revocations.digest = lambda: Hash(bytes([1]) * 32)  # type: ignore[method-assign]
            await founder.reach(liar)
            await until(lambda: len(founder.mesh.revocations) == 1)
            before, asked = asked, 0
            with trio.fail_after(30):
                await founder.mesh._compare(liar.peer_id)
            assert before >= 1
            assert 1 < asked <= 2 * (MAX_REVOCATIONS // 64 + 1)  # the first comparison may still be at it


async def test_a_newcomer_does_not_gossip_all_that_it_learns(box: Callable[[int], Box]) -> None:
    async with one_invited(box) as (founder, newcomer):
        for number in range(100):
            said = Revocation(founder.mesh.mesh.id, bytes([number]) * 16, "", founder.clock() + number)
            assert founder.mesh.revocations.add(sign_revocation(said, founder.key)) is not None
        async with newcomer.running():
            told: list[bytes] = []
            newcomer.transport.publish = lambda _topic, payload: _noted(told, payload)  # type: ignore[method-assign]
            await newcomer.reach(founder)
            await until(lambda: len(newcomer.mesh.revocations) == 100)
            assert len(told) <= 16  # two pages


async def _noted(told: list[bytes], payload: bytes) -> None:
    told.append(payload)


async def test_a_revocation_without_room_is_not_called_known(box: Callable[[int], Box], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dht.revocations.MAX_REVOCATIONS", 1)
    founder, first, second = box(1).found(), box(2), box(3)
    async with founder.running():
        assert (await founder.desk.revoke(first.peer_id))["new"]
        assert not (await founder.desk.revoke(first.peer_id))["new"]
        with pytest.raises(RemoteError, match="no room"):
            await founder.desk.revoke(second.peer_id)


def test_a_damaged_or_open_mesh_file_is_one_sentence(box: Callable[[int], Box]) -> None:
    founder = box(1).found()
    path = founder.folder.folder / "mesh.json"
    path.chmod(0o644)
    with pytest.raises(MeshFolderError, match="chmod 600"):
        founder.folder.read()
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(MeshFolderError, match="damaged"):
        founder.folder.read()
    founder.folder.write(Kept("home", founder.peer_id, bytes(16), bytes(32), (b"no grant",)))
    with pytest.raises(MeshFolderError, match="damaged"):
        open_private_mesh(founder.folder.folder, founder.key, founder.clock, Random(1))
    assert "key" not in repr(Kept("home", PeerId(founder.peer_id), bytes(16), bytes(32)))
