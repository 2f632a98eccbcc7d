"""Pieces that travel together: their text, their order and how many tokens they stand for."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.delta import MAX_ITEM_CHARS, Delta, TokenLogprob, delta_items, joined, read_delta
from protocol.wire.errors import Code, RemoteError

PIECES = st.builds(
    lambda text, extra, logprob: Delta(text, (), logprob, tokens=min(1 + extra, max(1, len(text)))),
    st.text(max_size=8),
    st.integers(0, 8),
    st.sampled_from([(), (TokenLogprob("a", -0.5),)]),
)


def counted(deltas: list[Delta]) -> int:
    return sum(delta.tokens for delta in deltas if delta.text)


@given(st.lists(PIECES, max_size=8))
def test_joined_pieces_say_and_count_the_same(pieces: list[Delta]) -> None:
    found = joined(pieces)
    assert "".join(one.text for one in found) == "".join(one.text for one in pieces)
    assert counted(found) == counted(pieces)
    assert [one.logprobs for one in found if one.logprobs] == [one.logprobs for one in pieces if one.logprobs]
    plain = [not one.logprobs for one in found]
    assert not any(this and following for this, following in pairwise(plain))


@given(st.text(min_size=1, max_size=50), st.integers(1, 60))
def test_a_piece_arrives_as_it_was_sent(text: str, tokens: int) -> None:
    found = [read_delta(item) for item in delta_items(text, tokens=tokens)]
    assert joined(found) == [Delta(text, tokens=min(tokens, len(text)))]


def test_a_token_alone_is_its_text_and_nothing_else() -> None:
    assert list(delta_items("word")) == [b"word"]
    assert list(delta_items("word", tokens=2)) == [b'\xc1{"text":"word","tokens":2}']


def test_long_text_is_cut_and_its_tokens_are_counted_once() -> None:
    text = "x" * (2 * MAX_ITEM_CHARS + 5)
    for tokens in (1, 7, len(text)):
        found = [read_delta(item) for item in delta_items(text, tokens=tokens)]
        assert ("".join(one.text for one in found), len(found)) == (text, 3)
        assert counted(found) in (tokens, tokens + 1, tokens + 2)


@pytest.mark.parametrize("body", [b'\xc1{"text":"ab","tokens":3}', b'\xc1{"tokens":2}', b'\xc1{"text":"a","tokens":0}'])
def test_no_piece_counts_more_tokens_than_it_has_characters(body: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        read_delta(body)
    assert caught.value.code is Code.MALFORMED
