"""Why nobody who serves a model can be asked at this moment, though somebody does serve it. Pure; decides no peer."""

from collections.abc import Iterable

from daemon.engine.interface import Engine, EngineState
from dht.standing import Config, PeerView, Standing
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import short

ENGINE_SECONDS = 2.0
"""When to ask again for an engine that starts: no sooner do most."""


def resting(engine: Engine | None, views: Iterable[PeerView], model: str, peer: str | None = None) -> RemoteError | None:
    """The error (overloaded) that says when to ask again for `model` ("" for any), of `peer` where one is named.

    None where nobody is known to serve it: then there is nothing to wait for. `engine` is our own one.
    """
    if engine is not None and peer is None and _starts(engine, model):
        return RemoteError(Code.OVERLOADED, f"the engine is not ready: {engine.reason}", retry_after=ENGINE_SECONDS)
    suspects = [view for view in views if view.standing is Standing.SUSPECT and _serves(view, model)]
    silent = [view.peer for view in suspects if peer in (None, view.peer)]
    if not silent:
        return None
    who = f"peer {short(silent[0])}" if len(silent) == 1 else f"{len(silent)} peers"
    reason = f"nobody serves {model or 'a model'} just now: {who} failed or fell silent, and is asked again once heard of"
    return RemoteError(Code.OVERLOADED, reason, retry_after=Config().beat)


def _starts(engine: Engine, model: str) -> bool:
    """Whether it may serve `model` soon; which model it has is known once it was ready."""
    comes = engine.state in (EngineState.STARTING, EngineState.RESTARTING)
    return comes and (engine.model is None or model in ("", engine.model.name))


def _serves(view: PeerView, model: str) -> bool:
    offered = view.signed.offer.model if view.signed is not None else ""
    return bool(offered) and model in ("", offered)
