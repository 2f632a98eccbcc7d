"""Arbitrary bytes into every decoder of what peers send: a value or a RemoteError comes out, and nothing else."""

import importlib
import pkgutil
from contextlib import suppress

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crdt_store
import dht
import protocol
from protocol.wire.codec import FrameReader, Message, decode, encode
from protocol.wire.envelope import open_envelope
from protocol.wire.errors import Code, RemoteError

PACKAGES = (protocol, dht, crdt_store)

pytestmark = pytest.mark.slow


def _all_kinds() -> list[type[Message]]:
    for package in PACKAGES:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    kinds, rest = [], list(Message.__subclasses__())
    while rest:
        kind = rest.pop()
        rest += kind.__subclasses__()
        if kind.__module__.split(".")[0] in {package.__name__ for package in PACKAGES}:
            kinds.append(kind)
    return sorted(kinds, key=lambda kind: (kind.__module__, kind.__name__))


KINDS = _all_kinds()
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.binary(max_size=70),
    st.text(max_size=60).filter(str.isprintable),
)
PLAIN = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=9), st.dictionaries(st.text(max_size=3), inner, max_size=2))
)
RAW = st.one_of(st.binary(max_size=200), PLAIN.map(msgpack.packb), st.lists(LEAVES, max_size=12).map(msgpack.packb))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
@settings(derandomize=True, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(raw=RAW)
def test_a_decoder_gives_a_value_or_a_remote_error(kind: type[Message], raw: bytes) -> None:
    refused = None
    try:
        value = decode(kind, raw)
    except RemoteError as error:
        refused = error
    if refused is None:
        assert decode(kind, encode(value)) == value
    else:
        assert refused.code in (Code.MALFORMED, Code.OVERSIZED)
        assert len(refused.message) < 400


@settings(derandomize=True, deadline=None)
@given(raw=RAW)
def test_an_envelope_of_noise_is_refused(raw: bytes) -> None:
    with pytest.raises(RemoteError):
        open_envelope("claim", raw)


@settings(derandomize=True, deadline=None)
@given(chunks=st.lists(st.binary(max_size=50), max_size=10))
def test_a_frame_reader_never_holds_more_than_one_frame(chunks: list[bytes]) -> None:
    reader = FrameReader(limit=100)
    with suppress(RemoteError):
        for chunk in chunks:
            reader.feed(chunk)
            assert reader.pending <= 104


def test_every_wire_message_is_a_frozen_array() -> None:
    for kind in KINDS:
        assert kind.__struct_config__.array_like, kind
        assert kind.__struct_config__.frozen, kind
