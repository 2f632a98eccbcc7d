"""The Noise transport phase: any cut of the wire gives the same plaintext, and one wrong byte gives none."""

import socket
import struct
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.secure_session import SecureSession

from daemon.transport.noise_session import (
    LENGTH_BYTES,
    MAX_MESSAGE,
    MAX_PLAINTEXT,
    READS_AT_ONCE,
    CipherFault,
    NoiseSession,
    Sealer,
)
from daemon.transport.tcp import plain_socket

KEY = bytes(range(32))


def opened(opener: Sealer, wire: bytes, cut: int) -> bytes:
    rest, plaintext = b"", deque[bytes]()
    for at in range(0, len(wire), cut):
        received = rest + wire[at : at + cut]
        rest = received[opener.open(received, plaintext) :]
    assert not rest
    return b"".join(plaintext)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=6), st.integers(1, 400))
def test_any_cut_of_the_wire_gives_the_same_plaintext(messages: list[bytes], cut: int) -> None:
    sealer = Sealer(KEY, 0)
    wire = b"".join(sealer.seal(message) for message in messages)
    assert opened(Sealer(KEY, 0), wire, cut) == b"".join(messages)


def test_long_plaintext_is_cut_into_messages_of_the_largest_size() -> None:
    plaintext = b"x" * (2 * MAX_PLAINTEXT + 1)
    wire = Sealer(KEY, 5).seal(plaintext)
    assert wire[:2] == b"\xff\xff"
    assert len(wire) == len(plaintext) + 3 * (2 + 16)
    assert opened(Sealer(KEY, 5), wire, 65536) == plaintext


def test_nonces_count_up_so_that_no_message_can_be_replayed() -> None:
    sealer, opener = Sealer(KEY, 0), Sealer(KEY, 0)
    first, second = sealer.seal(b"a"), sealer.seal(b"a")
    assert first != second
    assert opened(opener, first, 100) == b"a"
    with pytest.raises(CipherFault):
        opener.open(first, deque())


@pytest.mark.parametrize("wire", [b"\x00\x00", b"\x00\x05hello", b"\x00\x40" + b"z" * 64], ids=["empty", "short", "random"])
def test_what_does_not_authenticate_is_a_fault(wire: bytes) -> None:
    with pytest.raises(CipherFault):
        Sealer(KEY, 0).open(wire, deque())


@pytest.mark.parametrize("position", [2, 10, -1])
def test_one_flipped_bit_is_a_fault(position: int) -> None:
    wire = bytearray(Sealer(KEY, 0).seal(b"the quick brown fox"))
    wire[position] ^= 1
    with pytest.raises(CipherFault):
        Sealer(KEY, 0).open(bytes(wire), deque())


def test_an_unfinished_message_waits() -> None:
    received, plaintext = Sealer(KEY, 0).seal(b"hello")[:-1], deque[bytes]()
    assert Sealer(KEY, 0).open(received, plaintext) == 0
    assert not plaintext


def side(sock: "trio.socket.SocketType", keys: tuple[bytes, bytes]) -> NoiseSession:
    """The transport phase over a real socket, as a handshake would have left it."""
    sending, receiving = (SimpleNamespace(k=key, n=0) for key in keys)
    protocol = SimpleNamespace(cipher_state_encrypt=sending, cipher_state_decrypt=receiving)
    conn = SimpleNamespace(noise_state=SimpleNamespace(noise_protocol=protocol))
    keypair = create_new_key_pair(bytes(32))
    handshaken = SimpleNamespace(
        local_peer=ID.from_pubkey(keypair.public_key),
        local_private_key=keypair.private_key,
        remote_peer=ID.from_pubkey(keypair.public_key),
        remote_permanent_pubkey=keypair.public_key,
        is_initiator=True,
        conn=conn,
    )
    raw = RawConnection(TrioTCPStream(trio.SocketStream(sock)), True)
    return NoiseSession(cast("SecureSession", handshaken), raw)


@asynccontextmanager
async def both_ends() -> AsyncGenerator[tuple[NoiseSession, NoiseSession, "trio.socket.SocketType"], None]:
    """The two ends of a connection over loopback, and the second one's socket."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    near = trio.socket.socket()
    await near.connect(listener.socket.getsockname())
    far = (await listener.accept()).socket
    ours, theirs = side(near, (KEY, KEY[::-1])), side(far, (KEY[::-1], KEY))
    try:
        yield ours, theirs, far
    finally:
        await ours.close()
        await theirs.close()
        await listener.aclose()


async def came(sock: "trio.socket.SocketType", size: int) -> None:
    """Wait until so many bytes lie unread in `sock`."""
    with trio.fail_after(5):
        while len(await sock.recv(size, socket.MSG_PEEK)) < size:
            await trio.sleep(0.001)


async def takes_a_turn(session: NoiseSession, size: int) -> bool:
    """Whether reading `size` bytes, which have come, passes a checkpoint."""
    with trio.CancelScope() as scope:
        scope.cancel()  # shows at the first checkpoint
        assert len(await session.read()) == size
    if scope.cancelled_caught:
        assert len(await session.read()) == size
    return scope.cancelled_caught


async def warmed_up(ours: NoiseSession, theirs: NoiseSession) -> None:
    """Have the kernel take several messages at once, as it does after some, and end the row of reads that this began."""
    for size in (MAX_PLAINTEXT,) * 40 + (1,) * (READS_AT_ONCE + 1):
        ours.write_now(bytes(size))
        read = 0
        while read < size:
            read += len(await theirs.read())


async def test_of_a_long_row_of_messages_only_some_are_read_without_a_turn_of_the_loop() -> None:
    async with both_ends() as (ours, theirs, far):
        turns = []
        for size in (MAX_PLAINTEXT,) * (2 * READS_AT_ONCE + 2) + (1000, 1000):
            ours.write_now(bytes(size))
            await came(far, size)
            turns.append(await takes_a_turn(theirs, size))
        row = [True] + [False] * READS_AT_ONCE
        assert turns == [*row, *row, True, True], "a short message is followed by none"


async def test_where_more_lies_ready_each_read_of_a_row_takes_one_message() -> None:
    async with both_ends() as (ours, theirs, far):
        turns: list[bool] = []
        await warmed_up(ours, theirs)
        ours.write_now(bytes(MAX_PLAINTEXT))
        await came(far, MAX_MESSAGE + LENGTH_BYTES)
        await takes_a_turn(theirs, MAX_PLAINTEXT)
        for _ in range(READS_AT_ONCE + 1):
            ours.write_now(bytes(MAX_PLAINTEXT))
            if not turns:
                ours.write_now(bytes(MAX_PLAINTEXT))
            await came(far, 2 * (MAX_MESSAGE + LENGTH_BYTES))
            turns.append(await takes_a_turn(theirs, MAX_PLAINTEXT))
        assert turns == [False] * READS_AT_ONCE + [True]


async def test_after_a_read_of_several_messages_others_have_their_turn() -> None:
    async with both_ends() as (ours, theirs, far):
        await warmed_up(ours, theirs)
        ours.write_now(bytes(2 * MAX_PLAINTEXT))
        await came(far, 2 * (MAX_MESSAGE + LENGTH_BYTES))
        turns = [await takes_a_turn(theirs, MAX_PLAINTEXT) for _ in range(2)]
        ours.write_now(bytes(1000))
        await came(far, 1000)
        assert [*turns, await takes_a_turn(theirs, 1000)] == [True, False, True]


async def test_where_nothing_came_in_time_the_next_message_is_waited_for() -> None:
    async with both_ends() as (ours, theirs, far):
        ours.write_now(bytes(MAX_PLAINTEXT))
        await came(far, MAX_MESSAGE + LENGTH_BYTES)
        await theirs.read()
        with trio.move_on_after(0.05) as patience:
            await theirs.read()
        assert patience.cancelled_caught
        ours.write_now(b"late")
        assert await theirs.read() == b"late"
        ours.write_now(bytes(MAX_PLAINTEXT))
        await came(far, MAX_MESSAGE + LENGTH_BYTES)
        await theirs.read()
        await ours.close()
        assert await theirs.read() == b""


@pytest.mark.parametrize("size", [1000, MAX_PLAINTEXT])
async def test_a_reset_is_no_orderly_end(size: int) -> None:
    async with both_ends() as (ours, theirs, far):
        ours.write_now(bytes(size))
        await came(far, size)
        await theirs.read()
        sock = plain_socket(ours.raw)
        assert sock is not None
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await ours.close()
        with pytest.raises(ConnectionResetError):
            await theirs.read()


async def test_what_the_kernel_does_not_take_at_once_leaves_with_the_next_write_and_in_order() -> None:
    async with both_ends() as (ours, theirs, _), trio.open_nursery() as nursery:
        sent = b""
        while ours.can_write_now:
            message = len(sent).to_bytes(4, "big") * 10_000
            ours.write_now(message)
            sent += message
        assert ours.unsent, "the kernel takes all that it is given"
        sent += b"the last"
        nursery.start_soon(ours.write, b"the last")
        received = b""
        while len(received) < len(sent):
            received += await theirs.read()
        assert received == sent
        assert ours.can_write_now
        await ours.close()
        ours.write_now(b"into the void")
        with pytest.raises((OSError, trio.ClosedResourceError)):
            await ours.write(b"")
