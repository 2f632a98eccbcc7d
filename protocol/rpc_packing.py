"""Compressed frames of an RPC link. Decides what is worth packing and what may be unpacked; knows no call and no link.

A frame is packed whole, for a side that named the capability in its Hello. Deflate (RFC 1950) because every language has it.
"""

import zlib
from collections.abc import Callable
from typing import Final

from protocol.rpc_frames import MAX_PACKED_RATIO, Packed
from protocol.wire.codec import LENGTH_BYTES, Message, encode, encode_frame, frame
from protocol.wire.errors import Code, RemoteError, malformed
from protocol.wire.limits import MAX_FRAME_BYTES

CAPABILITY: Final = "deflate"

LEAST_BYTES: Final = 8 << 10
"""Smaller frames are sent as they are: the line saves less than the two ends spend."""

_SAMPLE_BYTES = 4 << 10
_WORTH = 0.75
"""A frame that keeps more than this share of its size is sent as it is: keys, signatures and vectors do not shrink."""

_LEVEL = 1
"""Text shrinks to 0.36; level 3 takes twice the time for 0.33. bench/packing.py says on which lines it pays."""


def pack(raw: bytes | memoryview) -> bytes | None:
    """The encoding of the Packed frame that stands for the encoded frame `raw`; None where that is not worth it."""
    if len(raw) < LEAST_BYTES:
        return None
    middle = (len(raw) - _SAMPLE_BYTES) // 2
    sample = raw[middle : middle + _SAMPLE_BYTES]
    if len(zlib.compress(sample, _LEVEL)) > _WORTH * len(sample):
        return None
    body = zlib.compress(raw, _LEVEL)
    if len(body) > _WORTH * len(raw) or len(body) * MAX_PACKED_RATIO < len(raw):
        return None
    return encode(Packed(len(raw), body))


def packed_frame(message: Message, packs: Callable[[], bool]) -> bytes | bytearray:
    """The frame of `message`, packed where that is worth it and `packs` says that the line is slow enough."""
    framed = encode_frame(message)
    if len(framed) < LEAST_BYTES or not packs():
        return framed
    packed = pack(memoryview(framed)[LENGTH_BYTES:])
    return frame(packed) if packed else framed


def unpack(packed: Packed) -> bytes:
    """The encoded frame within, never more than it says; raises RemoteError(oversized | malformed)."""
    if packed.size > min(MAX_FRAME_BYTES, len(packed.body) * MAX_PACKED_RATIO):
        raise RemoteError(Code.OVERSIZED, f"{len(packed.body)} packed bytes claim to be {packed.size}")
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(packed.body, packed.size)
        # What is left without output is the end of the stream, its checksum.
        rest = inflater.decompress(inflater.unconsumed_tail, 1)
    except zlib.error as error:
        raise malformed(f"a packed frame: {error}") from None
    if rest or len(raw) != packed.size or not inflater.eof or inflater.unused_data:
        raise malformed("a packed frame is not of the size that it claims")
    return raw
