"""Hash commitments: what a seal binds its author to. Decides nothing else.

The author is hashed in, so a copied commitment can be opened by nobody but the one it was copied from; the 256-bit salt keeps
a short answer from being guessed before it is revealed.
"""

from protocol.round.messages import Judgement
from protocol.wire.codec import encode
from protocol.wire.ids import Hash, PeerId, sha256


def answer_commitment(round_id: Hash, author: PeerId, salt: bytes, answer: str) -> Hash:
    """The commitment in an answer's seal."""
    return sha256(b"swarmd/1/round/answer", round_id, author.encode(), salt, answer.encode())


def ballot_commitment(round_id: Hash, author: PeerId, salt: bytes, judgements: tuple[Judgement, ...]) -> Hash:
    """The commitment in a ballot's seal."""
    return sha256(b"swarmd/1/round/ballot", round_id, author.encode(), salt, encode(judgements))
