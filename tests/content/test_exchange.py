"""Whole fetches between peers: from several at once, interrupted, lied to, cut off, refused. Files and hashes are real."""

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from daemon.content import exchange, formats
from daemon.content.exchange import ContentPolicy
from daemon.content.part_file import PartFile
from protocol.content.manifest import open_manifest
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import Hash
from tests.content.conftest import MIB, Sharers, gguf


async def refused(work: object) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await work  # type: ignore[misc]
    return caught.value


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of five chunks, the last one short."""
    path = tmp_path / "My Model.gguf"
    path.write_bytes(gguf(4 * MIB + 1000))
    return path


async def test_a_file_comes_from_several_peers_and_is_shared_on(sharers: Sharers, model: Path, autojump_clock: MockClock) -> None:
    alice, bob, carol, dave = await sharers(4)
    first = await alice.exchange.seed(model)
    assert (await bob.exchange.seed(model)).address == first.address  # whoever has the same bytes has the same address
    result, progress = await carol.pulled(first.address)
    assert result.file.path.read_bytes() == model.read_bytes()
    assert (result.file.name, result.fetched) == ("My-Model.gguf", model.stat().st_size)
    assert set(result.by_peer) == {alice.id, bob.id}
    assert progress[0].size == model.stat().st_size
    await bob.exchange.remove(first.address.hex())
    alice.scope.cancel()
    again, _ = await dave.pulled(first.address)
    assert set(again.by_peer) == {carol.id}
    assert model.exists()  # the user's own file stays


async def test_a_file_that_is_here_is_not_fetched(sharers: Sharers, model: Path, autojump_clock: MockClock) -> None:
    (alice,) = await sharers(1)
    file = await alice.exchange.seed(model)
    result, progress = await alice.pulled(file.address)
    assert (result.fetched, progress, result.file.path) == (0, [], model)


async def test_a_lying_peer_costs_its_own_chunks(sharers: Sharers, model: Path, autojump_clock: MockClock) -> None:
    alice, bob, carol = await sharers(3)
    file = await alice.exchange.seed(model)
    await bob.exchange.seed(model)
    bob.lies(lambda index: bytes(MIB if index < 4 else 1000))
    result, _ = await carol.pulled(file.address)
    assert result.file.path.read_bytes() == model.read_bytes()
    assert set(result.by_peer) == {alice.id}
    assert list(result.dropped) == [bob.id]


async def test_who_has_nothing_is_not_blamed(sharers: Sharers, model: Path, autojump_clock: MockClock) -> None:
    alice, bob, carol = await sharers(3)
    file = await alice.exchange.seed(model)
    await bob.exchange.seed(model)
    bob.lies(lambda index: b"")
    result, _ = await carol.pulled(file.address)
    assert (set(result.by_peer), result.dropped) == ({alice.id}, {})


@pytest.mark.parametrize("length", [1, MIB + 1], ids=["too short", "too long"])
async def test_a_chunk_of_another_length_is_a_lie(sharers: Sharers, model: Path, autojump_clock: MockClock, length: int) -> None:
    alice, bob, carol = await sharers(3)
    file = await alice.exchange.seed(model)
    await bob.exchange.seed(model)
    bob.lies(lambda index: bytes(length))
    result, _ = await carol.pulled(file.address)
    assert list(result.dropped) == [bob.id]


async def test_a_peer_that_dies_in_the_middle_is_replaced(sharers: Sharers, model: Path, autojump_clock: MockClock) -> None:
    alice, bob, carol = await sharers(3, ContentPolicy(1 << 40, 1.0 * MIB))
    file = await alice.exchange.seed(model)
    await bob.exchange.seed(model)
    async with trio.open_nursery() as nursery:

        async def kill() -> None:
            while not carol.exchange.files() or not carol.exchange.files()[0]["done"]:
                await trio.sleep(0.05)
            alice.transport.mesh.kill(alice.id)

        nursery.start_soon(kill)
        result, _ = await carol.pulled(file.address)
    assert result.file.path.read_bytes() == model.read_bytes()


async def test_an_interrupted_fetch_goes_on_where_it_stopped(sharers: Sharers, model: Path, autojump_clock: MockClock) -> None:
    alice, carol = await sharers(2, ContentPolicy(1 << 40, 1.0 * MIB))
    file = await alice.exchange.seed(model)
    with trio.move_on_after(3.0) as cut:
        await carol.pulled(file.address)
    assert cut.cancelled_caught
    assert carol.exchange.files() == []
    (part,) = carol.folder.glob("*.part")
    assert part.stat().st_size < model.stat().st_size or part.stat().st_blocks * 512 < model.stat().st_size
    result, _ = await carol.pulled(file.address)
    assert 0 < result.fetched < model.stat().st_size
    assert result.file.path.read_bytes() == model.read_bytes()
    assert [path.name for path in carol.folder.iterdir() if path.suffix in (".part", ".have")] == []


async def test_the_upload_limit_holds_for_all_peers_together(sharers: Sharers, model: Path, autojump_clock: MockClock) -> None:
    alice, bob, carol = await sharers(3, ContentPolicy(1 << 40, 1.0 * MIB))
    file = await alice.exchange.seed(model)
    alice.transport.mesh.cut(bob.id, carol.id)
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bob.pulled, file.address, alice.id)
        nursery.start_soon(carol.pulled, file.address, alice.id)
    assert trio.current_time() - started >= 2 * 4 - 1.5  # two files of four MiB at one MiB a second, less the burst


async def test_who_fetches_shares_already(sharers: Sharers, model: Path, autojump_clock: MockClock) -> None:
    alice, bob, carol = await sharers(3, ContentPolicy(1 << 40, 0.5 * MIB))
    file = await alice.exchange.seed(model)
    results = []
    async with trio.open_nursery() as nursery:

        async def pull(one: object) -> None:
            results.append(await one.pulled(file.address))  # type: ignore[attr-defined]

        nursery.start_soon(pull, bob)
        nursery.start_soon(pull, carol)
    assert any(result.by_peer.get(other.id, 0) for (result, _), other in zip(results, (carol, bob), strict=True)) or any(
        len(result.by_peer) == 2 for result, _ in results
    )


async def test_nobody_shares_it(sharers: Sharers, autojump_clock: MockClock) -> None:
    alice, _ = await sharers(2)
    error = await refused(alice.pulled(Hash(bytes(32))))
    assert error.code is Code.NOT_FOUND
    assert "models list --peers" in error.message


async def test_the_quota_is_kept(sharers: Sharers, model: Path, autojump_clock: MockClock) -> None:
    (alice,) = await sharers(1)
    (carol,) = await sharers(1, ContentPolicy(4 * MIB, 0.0))
    file = await alice.exchange.seed(model)
    error = await refused(carol.pulled(file.address))
    assert error.code is Code.REFUSED
    assert "content.quota_gib" in error.message
    assert list(carol.folder.glob("*.part")) == []


async def test_a_full_disk_is_said_and_what_came_stays(
    sharers: Sharers, model: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, carol = await sharers(2)
    file = await alice.exchange.seed(model)
    write, left = os.pwrite, [2]

    def failing(descriptor: int, piece: memoryview, at: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return write(descriptor, piece, at)

    monkeypatch.setattr(os, "pwrite", failing)
    error = await refused(carol.pulled(file.address))
    assert "No space left" in error.message
    monkeypatch.setattr(os, "pwrite", write)
    result, _ = await carol.pulled(file.address)
    assert result.fetched < file.size


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"#!/bin/sh\nrm -rf /\n", "neither a GGUF nor a safetensors"),
        (b"\x80\x04\x95evil pickle", "neither a GGUF nor a safetensors"),
        (gguf(MIB)[: MIB // 2], "truncated"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "header claims"),
        ((2).to_bytes(8, "little") + b"{}", "no weights"),
        ((7).to_bytes(8, "little") + b"{nojson", "damaged"),
        (
            (len(h := b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}')).to_bytes(8, "little") + h + bytes(35),
            "truncated",
        ),
    ],
)
async def test_only_models_are_shared(
    sharers: Sharers, tmp_path: Path, autojump_clock: MockClock, content: bytes, said: str
) -> None:
    (alice,) = await sharers(1)
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    error = await refused(alice.exchange.seed(path))
    assert error.code is Code.REFUSED
    assert said in error.message


async def test_what_turns_out_to_be_no_model_is_not_kept(
    sharers: Sharers, tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, carol = await sharers(2)
    path = tmp_path / "script.gguf"
    path.write_bytes(b"#!/bin/sh\n" * 200_000)
    with monkeypatch.context() as patched:
        patched.setattr("daemon.content.shelf.model_suffix", lambda path: ".gguf")
        file = await alice.exchange.seed(path)
    error = await refused(carol.pulled(file.address))
    assert "not kept" in error.message
    assert [one.name for one in carol.folder.iterdir()] == []


async def test_safetensors_are_models(sharers: Sharers, tmp_path: Path, autojump_clock: MockClock) -> None:
    alice, carol = await sharers(2)
    header = b'{"__metadata__":{"a":"b"},"w":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
    path = tmp_path / "weights.bin"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(36))
    file = await alice.exchange.seed(path)
    result, _ = await carol.pulled(file.address)
    assert result.file.name == "weights.bin.safetensors"
    assert formats.model_suffix(result.file.path) == ".safetensors"


async def test_a_changed_file_is_shared_no_more(sharers: Sharers, model: Path, autojump_clock: MockClock) -> None:
    alice, carol = await sharers(2)
    file = await alice.exchange.seed(model)
    model.write_bytes(gguf(4 * MIB + 1000, seed=2))
    os.utime(model, ns=(1, 1))
    error = await refused(carol.pulled(file.address))
    assert error.code is Code.NOT_FOUND
    assert alice.exchange.files() == []
    assert model.exists()


async def test_a_push_needs_leave(sharers: Sharers, model: Path, autojump_clock: MockClock) -> None:
    (alice,) = await sharers(1)
    (closed,) = await sharers(1)
    (open_,) = await sharers(1, ContentPolicy(1 << 40, 0.0, frozenset({alice.id})))
    await alice.exchange.seed(model)
    error = await refused(alice.exchange.push(closed.id, "My-Model.gguf"))
    assert error.code is Code.REFUSED
    await alice.exchange.push(open_.id, "My-Model.gguf")
    with trio.fail_after(30):
        while not [one for one in open_.exchange.files() if one.get("fetched")]:
            await trio.sleep(0.1)
    assert closed.exchange.files() == []


async def test_two_files_of_one_name_live_side_by_side(sharers: Sharers, tmp_path: Path, autojump_clock: MockClock) -> None:
    alice, carol = await sharers(2)
    names = []
    for number in (1, 2):
        path = tmp_path / str(number) / "same.gguf"
        path.parent.mkdir()
        path.write_bytes(gguf(MIB, number))
        file = await alice.exchange.seed(path)
        names.append((await carol.pulled(file.address))[0].file.name)
    assert names[0] == "same.gguf"
    assert names[1] == f"same-{file.address.hex()[:8]}.gguf"


async def test_a_restart_shares_what_was_shared(sharers: Sharers, model: Path, autojump_clock: MockClock) -> None:
    alice, carol = await sharers(2)
    file = await alice.exchange.seed(model)
    again = exchange.ContentExchange(alice.folder, alice.calls, alice.transport, ContentPolicy(1, 0.0), carol.exchange._rng)
    assert [one["address"] for one in again.files()] == [file.address.hex()]


async def test_what_peers_offer_is_listed(sharers: Sharers, model: Path, autojump_clock: MockClock) -> None:
    alice, bob, carol = await sharers(3)
    file = await alice.exchange.seed(model)
    await bob.exchange.seed(model)
    (row,) = await carol.exchange.offered(None)
    assert (row["address"], sorted(row["peers"])) == (file.address.hex(), sorted([alice.id, bob.id]))


async def test_a_note_says_only_what_was_on_disk_before_it(sharers: Sharers, model: Path, autojump_clock: MockClock) -> None:
    """A crash after some chunks: what the note does not name is fetched again, and a damaged note names nothing."""
    (alice,) = await sharers(1)
    file = await alice.exchange.seed(model)
    raw = (alice.folder / f"{file.address.hex()}.manifest").read_bytes()
    manifest = open_manifest(file.address, raw)
    content = model.read_bytes()
    part = PartFile(alice.folder, "x", manifest)
    assert part.store(0, content[:MIB])
    assert not part.store(1, content[:MIB])
    part.note()
    assert part.store(1, bytearray(content[MIB : 2 * MIB]))
    crashed = PartFile(alice.folder, "x", manifest)
    assert crashed.present == {0}
    crashed.close()
    (alice.folder / "x.have").write_bytes(b"\xff" * 10)
    damaged = PartFile(alice.folder, "x", manifest)
    assert damaged.present == set()
    damaged.discard()
    part.close()
