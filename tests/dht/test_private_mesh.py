"""Grants, invites and revocations of a private mesh: what lets a peer in, what does not, and that order plays no part."""

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.grants import Grant, Mesh, Rights, sign_grant, verify_chain
from dht.invites import Entry, Invite, InviteBook, accept, read_invite, recipient_of, write_invite
from dht.revocations import Revocation, Revocations, merge_all, sign_revocation
from dht.sealing import open_sealed, seal_to
from protocol.wire.envelope import public_bytes
from protocol.wire.errors import Code, LocalError, RemoteError
from protocol.wire.ids import PeerId, peer_id_of

VECTORS = Path(__file__).parents[1] / "vectors"
NOW, HOUR = 1_800_000_000_000, 3_600_000
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in range(1, 9)]
PEERS = [peer_id_of(public_bytes(key)) for key in KEYS]
FOUNDER, INVITER, MEMBER, OTHER, BEARER = range(5)
MESH = Mesh("home", PEERS[FOUNDER], bytes(16))
FOREIGN = Mesh("home", PEERS[FOUNDER], bytes([1]) * 16)


def grant(by: int, to: int, serial: int = 1, rights: Rights = Rights.MEMBER, expires: int = 0, mesh: Mesh = MESH) -> bytes:
    return sign_grant(Grant(mesh.id, bytes([serial]) * 16, PEERS[to], rights, NOW, expires), KEYS[by])


def refused(chain: tuple[bytes, ...], peer: int, at: int = NOW, **given: Any) -> str:
    with pytest.raises(RemoteError) as caught:
        verify_chain(MESH, chain, PEERS[peer], at, **given)
    return caught.value.message


BORNE = (grant(FOUNDER, BEARER, 3, Rights.BEARER, NOW + HOUR), grant(BEARER, MEMBER, 3, Rights.MEMBER, NOW + HOUR))
DELEGATED = (grant(FOUNDER, INVITER, 1, Rights.INVITER), grant(INVITER, MEMBER, 2))


@pytest.mark.parametrize(
    ("chain", "peer", "provisional", "inviter"),
    [
        ((), FOUNDER, False, None),
        ((grant(FOUNDER, MEMBER),), MEMBER, False, FOUNDER),
        ((grant(FOUNDER, MEMBER, expires=NOW + 1),), MEMBER, True, FOUNDER),
        (DELEGATED, MEMBER, False, INVITER),
        (BORNE, MEMBER, True, FOUNDER),
    ],
    ids=["founder", "member", "invited", "by a delegate", "by a bearer's invite"],
)
def test_what_lets_a_peer_in(chain: tuple[bytes, ...], peer: int, provisional: bool, inviter: int | None) -> None:
    membership = verify_chain(MESH, chain, PEERS[peer], NOW)
    assert membership.provisional is provisional
    assert membership.inviter == (None if inviter is None else PEERS[inviter])


@pytest.mark.parametrize(
    ("chain", "peer", "at", "says"),
    [
        ((), MEMBER, NOW, "no grant"),
        ((grant(FOUNDER, MEMBER),), OTHER, NOW, "another peer"),
        ((grant(OTHER, MEMBER),), MEMBER, NOW, "may give none"),
        ((grant(FOUNDER, MEMBER, mesh=FOREIGN),), MEMBER, NOW, "another mesh"),
        ((grant(FOUNDER, MEMBER, expires=NOW),), MEMBER, NOW, "expired"),
        (BORNE, MEMBER, NOW + HOUR, "expired"),
        ((grant(FOUNDER, MEMBER),), MEMBER, NOW - HOUR, "future"),
        ((grant(FOUNDER, INVITER), grant(INVITER, MEMBER, 2)), MEMBER, NOW, "may give none"),
        ((grant(FOUNDER, BEARER, 3, Rights.BEARER),), BEARER, NOW, "another peer"),
        ((BORNE[0], grant(BEARER, MEMBER, 4)), MEMBER, NOW, "may give none"),
        ((BORNE[0], grant(BEARER, INVITER, 3, Rights.INVITER), grant(INVITER, MEMBER, 5)), MEMBER, NOW, "may give none"),
        ((grant(FOUNDER, INVITER, 1, Rights.INVITER),) * 5, INVITER, NOW, "too many"),
    ],
)
def test_what_does_not(chain: tuple[bytes, ...], peer: int, at: int, says: str) -> None:
    assert says in refused(chain, peer, at)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_changed_byte_of_a_chain_lets_anybody_in(data: st.DataObject) -> None:
    which = data.draw(st.integers(0, 1))
    raw = bytearray(DELEGATED[which])
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    chain = (bytes(raw), DELEGATED[1]) if which == 0 else (DELEGATED[0], bytes(raw))
    with pytest.raises(RemoteError):
        verify_chain(MESH, chain, PEERS[MEMBER], NOW)


def revocation(by: int, serial: int | None = None, subject: int | None = None, mesh: Mesh = MESH) -> bytes:
    authority = () if by == FOUNDER else (DELEGATED[0],)
    named = "" if subject is None else PEERS[subject]
    return sign_revocation(Revocation(mesh.id, bytes([serial]) * 16 if serial else b"", named, NOW, authority), KEYS[by])


@pytest.mark.parametrize(
    ("raw", "void"),
    [
        (revocation(FOUNDER, serial=2), True),
        (revocation(FOUNDER, serial=1), True),
        (revocation(FOUNDER, subject=MEMBER), True),
        (revocation(FOUNDER, subject=INVITER), True),
        (revocation(INVITER, serial=2), True),
        (revocation(INVITER, subject=MEMBER), True),
        (revocation(INVITER, serial=1), False),
        (revocation(FOUNDER, serial=9), False),
    ],
    ids=["invite", "invite above", "member", "its inviter", "by the inviter", "removed by it", "of what is above it", "another"],
)
def test_who_may_take_a_grant_back(raw: bytes, void: bool) -> None:
    known = Revocations(MESH)
    assert known.add(raw) is not None
    if void:
        assert "revoked" in refused(DELEGATED, MEMBER, revoked=known.voids)
    else:
        verify_chain(MESH, DELEGATED, PEERS[MEMBER], NOW, known.voids)


@pytest.mark.parametrize("raw", [revocation(FOUNDER, serial=1, mesh=FOREIGN), b"", b"\xc1" * 40])
def test_a_bad_revocation_is_refused(raw: bytes) -> None:
    with pytest.raises(RemoteError):
        Revocations(MESH).add(raw)


def test_a_member_that_may_not_invite_revokes_nobody() -> None:
    raw = sign_revocation(Revocation(MESH.id, b"", PEERS[OTHER], NOW, (grant(FOUNDER, MEMBER),)), KEYS[MEMBER])
    with pytest.raises(RemoteError, match="let nobody in"):
        Revocations(MESH).add(raw)
    with pytest.raises(LocalError):
        sign_revocation(Revocation(MESH.id, b"", "", NOW), KEYS[FOUNDER])


def test_revocations_are_the_same_set_in_any_order_and_doubled() -> None:
    raws = [revocation(FOUNDER, serial=1), revocation(FOUNDER, subject=OTHER), revocation(INVITER, serial=2)]
    digests = set()
    for order in permutations(raws):
        known = Revocations(MESH)
        new, bad = merge_all(known, [*order, *order, b"junk"])
        assert (len(new), bad) == (3, 1)
        digests.add(known.digest())
    assert len(digests) == 1


def written(recipient: int | None = MEMBER, expires: int = NOW + HOUR) -> str:
    if recipient is None:
        chain, bearer = (grant(FOUNDER, BEARER, 3, Rights.BEARER, expires),), KEYS[BEARER].private_bytes_raw()
    else:
        chain, bearer = (grant(FOUNDER, recipient, 3, Rights.MEMBER, expires),), b""
    invite = Invite(MESH, bytes(range(32)), chain, ("/ip4/192.0.2.1/tcp/1/p2p/" + PEERS[FOUNDER],), bearer)
    return write_invite(invite, None if recipient is None else PEERS[recipient], KEYS[FOUNDER], bytes([7]) * 32)


def test_an_invite_for_a_peer_opens_for_that_peer_alone() -> None:
    text = written()
    assert recipient_of(text) == PEERS[MEMBER]
    invite = read_invite(text, KEYS[MEMBER], NOW)
    assert invite.key == bytes(range(32))
    assert verify_chain(MESH, accept(invite, KEYS[MEMBER], NOW), PEERS[MEMBER], NOW).provisional
    with pytest.raises(RemoteError, match="the invite is for"):
        read_invite(text, KEYS[OTHER], NOW)


def test_an_invite_for_the_first_who_comes_makes_a_chain_for_its_user() -> None:
    invite = read_invite(written(None), KEYS[OTHER], NOW)
    assert verify_chain(MESH, accept(invite, KEYS[OTHER], NOW), PEERS[OTHER], NOW).inviter == PEERS[FOUNDER]


@pytest.mark.parametrize("recipient", [MEMBER, None])
def test_an_expired_invite_is_refused(recipient: int | None) -> None:
    with pytest.raises(RemoteError, match="expired"):
        read_invite(written(recipient), KEYS[MEMBER], NOW + HOUR)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 63), st.sampled_from([MEMBER, None]))
def test_a_damaged_invite_is_one_sentence(position: int, change: int, recipient: int | None) -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    text = written(recipient)
    at = len("swarmd-invite-") + position % (len(text) - len("swarmd-invite-") - 1)  # the last letter has spare bits
    letter = letters[(letters.index(text[at]) + change) % 64]
    with pytest.raises(RemoteError):
        read_invite(text[:at] + letter + text[at + 1 :], KEYS[MEMBER], NOW)


@pytest.mark.parametrize("text", ["", "swarmd-invite-", "hello", "swarmd-invite-!!!!", "swarmd-invite-" + "A" * 100_000])
def test_what_is_no_invite_is_refused(text: str) -> None:
    with pytest.raises(RemoteError) as caught:
        read_invite(text, KEYS[MEMBER], NOW)
    assert caught.value.code is Code.MALFORMED


def test_line_breaks_in_an_invite_do_no_harm() -> None:
    text = written()
    assert read_invite("\n".join([text[:50], text[50:300], text[300:]]) + "\n", KEYS[MEMBER], NOW).mesh == MESH


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200), st.binary(min_size=32, max_size=32))
def test_what_is_sealed_opens_for_its_peer_alone(plaintext: bytes, ephemeral: bytes) -> None:
    sealed = seal_to(PEERS[MEMBER], plaintext, ephemeral, b"test")
    assert open_sealed(KEYS[MEMBER], sealed, b"test") == plaintext
    for key, purpose in ((KEYS[OTHER], b"test"), (KEYS[MEMBER], b"other")):
        with pytest.raises(RemoteError):
            open_sealed(key, sealed, purpose)


def entry(serial: int = 3, expires: int = NOW + HOUR) -> Entry:
    return Entry(bytes([serial]) * 16, PEERS[BEARER], True, Rights.MEMBER, NOW, expires)


def test_the_first_user_of_an_invite_binds_it() -> None:
    membership = verify_chain(MESH, BORNE, PEERS[MEMBER], NOW)
    book = InviteBook().with_entry(entry(), NOW)
    book, used = book.admit(PEERS[MEMBER], membership, NOW + 1)
    again, same = book.admit(PEERS[MEMBER], membership, NOW + 2)
    assert (again, same) == (book, used)
    assert used.state(NOW) == "used"
    with pytest.raises(RemoteError, match="used by another"):
        book.admit(PEERS[OTHER], membership, NOW + 3)
    with pytest.raises(RemoteError, match="was revoked"):
        book.revoke(bytes([3]) * 16, NOW).admit(PEERS[MEMBER], membership, NOW)


def test_a_full_book_forgets_what_is_over_and_no_open_invite() -> None:
    entries = tuple(Entry(n.to_bytes(16), PEERS[OTHER], False, Rights.MEMBER, NOW, NOW + HOUR) for n in range(1000))
    with pytest.raises(LocalError, match="open"):
        InviteBook(entries).with_entry(entry(), NOW)
    book = InviteBook(entries).revoke((5).to_bytes(16), NOW).with_entry(entry(), NOW)
    assert len(book.entries) == 1000
    assert book.find((5).to_bytes(16).hex()) is None


def test_an_invite_is_found_by_the_beginning_of_its_number() -> None:
    book = InviteBook((entry(0x31), entry(0x32)))
    assert book.find("3131") == entry(0x31)
    assert book.find("ff") is None
    with pytest.raises(LocalError, match="2 invites"):
        book.find("3")


def test_the_founders_removal_names_a_peer_whatever_its_chain() -> None:
    known = Revocations(MESH)
    known.add(revocation(FOUNDER, subject=OTHER))
    known.add(revocation(INVITER, subject=MEMBER))
    assert known.names(PEERS[OTHER])
    assert not known.names(PEERS[MEMBER])
    assert not known.names(PeerId(PEERS[FOUNDER]))


def test_the_bytes_of_version_1() -> None:
    rows = {row["name"]: row for row in map(json.loads, (VECTORS / "private_mesh.jsonl").read_text().splitlines())}
    mesh = Mesh("home", PEERS[0], bytes(range(16)))
    assert mesh.id.hex() == rows["mesh"]["id"]
    granted = Grant(mesh.id, bytes([7]) * 16, PEERS[1], Rights.INVITER, 1_700_000_000_000, 1_700_000_086_400)
    raw = sign_grant(granted, KEYS[0])
    assert raw.hex() == rows["grant"]["raw"]
    assert msgpack.unpackb(msgpack.unpackb(raw)[1]) == [mesh.id, bytes([7]) * 16, PEERS[1], 1, granted.issued, granted.expires]
    taken = sign_revocation(Revocation(mesh.id, bytes([7]) * 16, "", 1_700_000_000_001), KEYS[0])
    assert taken.hex() == rows["revocation"]["raw"]
    invite = read_invite(rows["invite"]["text"], KEYS[1], granted.issued)
    assert (invite.mesh, invite.key, invite.chain) == (mesh, bytes(range(32)), (raw,))
