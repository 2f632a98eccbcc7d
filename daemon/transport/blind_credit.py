"""What may be sent blind, to addresses that a relayed peer names: no more than it brought.

Decides no address and sends nothing. So nobody gains traffic against a third party by naming it, whatever it may say.
"""

from typing import Any
from weakref import WeakKeyDictionary

from libp2p.peer.id import ID

from daemon.transport.muxer import MuxedConnection
from daemon.transport.swarm import all_relayed


class BlindCredit:
    """The account of each relayed connection: bytes that came over it, less those that were sent blind for it."""

    def __init__(self, swarm: Any) -> None:
        self._swarm = swarm
        self._spent: WeakKeyDictionary[MuxedConnection, int] = WeakKeyDictionary()

    def afford(self, peer: ID, cost: int, most: int) -> int:
        """How many things of `cost` bytes each may be sent for `peer`, `most` at most; they count as sent."""
        count = 0
        for conn in all_relayed(self._swarm, peer):
            muxed = conn.muxed_conn
            if isinstance(muxed, MuxedConnection):
                spent = self._spent.get(muxed, 0)
                taken = max(0, min(most - count, (muxed.received - spent) // cost))
                self._spent[muxed] = spent + taken * cost
                count += taken
        return count
