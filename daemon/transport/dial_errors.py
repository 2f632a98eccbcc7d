"""Why a peer could not be reached, read out of the library's chains of exceptions and put for people. Dials nobody."""

from libp2p.network.exceptions import SwarmException


class DialError(SwarmException):
    """No address of a peer could be reached; `failures` pairs each with its reason."""

    def __init__(self, failures: list[tuple[str, str]]) -> None:
        self.failures = failures
        # The library knows an address with and without the peer's name: for people that is one.
        shown = dict.fromkeys((a if "/p2p-circuit" in a else a.partition("/p2p/")[0], reason) for a, reason in failures)
        super().__init__("; ".join(f"{address}: {reason}" for address, reason in shown) or "no address is known")


class WrongPeerError(SwarmException):
    """Somebody else answers at an address."""


def causes(error: BaseException | None) -> list[BaseException]:
    """`error` and what it was raised from, the outermost first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found


def other_peer(error: BaseException) -> str | None:
    for cause in causes(error):
        text = str(cause)
        if "remote_peer_id_from_pubkey=" in text:
            return f"another peer answers there: {text.rsplit('=', 1)[1]}"
    return None


def why(error: Exception) -> str:
    deepest: BaseException = causes(error)[-1]
    while isinstance(deepest, BaseExceptionGroup):
        deepest = deepest.exceptions[0]
    if isinstance(deepest, OSError) and deepest.strerror:
        return deepest.strerror.lower()
    return str(deepest)[:200] or type(deepest).__name__
