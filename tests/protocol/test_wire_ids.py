"""Names of peers and models: their text, what is refused, and the boundaries of a hash's parts."""

from contextlib import suppress

import base58
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.wire.errors import RemoteError
from protocol.wire.ids import is_model_name, is_peer_id, peer_id_of, public_key_of, sha256, short

# The Ed25519 example key of the libp2p peer-ids specification.
SPEC_KEY = bytes.fromhex("1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e")
SPEC_ID = "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"


def test_a_peer_id_is_the_identity_multihash_of_its_key() -> None:
    assert peer_id_of(SPEC_KEY) == SPEC_ID
    assert public_key_of(SPEC_ID) == SPEC_KEY
    assert short(SPEC_ID) == "Umo7R3pq"


@settings(derandomize=True)
@given(st.binary(min_size=32, max_size=32))
def test_every_key_has_one_id_and_back(key: bytes) -> None:
    peer = peer_id_of(key)
    assert is_peer_id(peer)
    assert public_key_of(peer) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        SPEC_ID[:-1],
        SPEC_ID + "1",
        "1" + SPEC_ID,
        SPEC_ID + "\n",
        " " + SPEC_ID,
        SPEC_ID.replace("K", "0"),
        "é" * 52,
        "Qm" + "a" * 44,
        base58.b58encode(bytes.fromhex("002408021220") + SPEC_KEY).decode(),
    ],
)
def test_other_texts_are_no_peer(text: str) -> None:
    assert not is_peer_id(text)


@settings(derandomize=True)
@given(st.text(max_size=60))
def test_any_text_is_a_key_or_a_remote_error(text: str) -> None:
    with suppress(RemoteError):
        assert len(public_key_of(text)) == 32


@pytest.mark.parametrize("name", ["a", "llama-3.1-8B", "owner/name", "a" * 96 + "/" + "b" * 96, "0_x"])
def test_model_names(name: str) -> None:
    assert is_model_name(name)


@pytest.mark.parametrize("name", ["", "-x", ".x", "a/b/c", "a/", "/a", "a..b", "a b", "a\n", "a" * 97, "é", "a/../b"])
def test_what_could_be_a_flag_or_a_path_is_no_model_name(name: str) -> None:
    assert not is_model_name(name)


def test_moving_a_boundary_changes_the_hash() -> None:
    assert len({sha256(b"ab", b"c"), sha256(b"a", b"bc"), sha256(b"abc"), sha256(b"abc", b"")}) == 4
