"""What this peer says of itself: its offer, signed whenever it changes, put into the DHT, withdrawn at the end; its load; and the
signature under its heartbeats. Gossips nothing.
"""

from collections.abc import Callable
from random import Random

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from daemon.engine.interface import EngineState, ModelDescription
from daemon.serving import Serving
from daemon.transport.interface import Transport, TransportError
from dht import records
from dht.offers import EMBEDDINGS, LIFETIME_MS, MAX_ADDRESSES, Offer, SignedOffer, sign_offer, withdraw
from dht.presence import Presence, sign_presence
from dht.standing import Load

log = structlog.get_logger("swarmd.membership")

ADDRESS_SECONDS = 2.0
"""An offer for the sake of new addresses alone at most this often."""

_PUBLISH_CHECK_SECONDS = 1.0
_PUBLISH_RETRY_SECONDS = 10.0


def features_of(model: ModelDescription) -> frozenset[str]:
    """The words by which an offer says what a model's engine has beyond text."""
    return model.features | {EMBEDDINGS} if model.embeds else model.features


class OwnOffer:
    """What we serve. `signed` is the latest offer, None before the first; `withdrawn`: we left for good."""

    def __init__(
        self,
        key: Ed25519PrivateKey,
        epoch: int,
        transport: Transport,
        serving: Serving,
        unix_ms: Callable[[], int],
        rng: Random,
    ) -> None:
        self.signed: SignedOffer | None = None
        self.withdrawn = False
        self._key = key
        self._epoch = epoch
        self._transport = transport
        self._serving = serving
        self._unix_ms = unix_ms
        self._rng = rng
        self._version = 0
        self._offered: str | None = None
        self._offered_at = 0.0
        self._provided: tuple[str, ...] = ()

    @property
    def epoch(self) -> int:
        """Which start of this peer the offer is of."""
        return self._epoch

    def sign(self, presence: Presence) -> bytes:
        """One heartbeat of ours as it is gossiped."""
        return sign_presence(presence, self._key)

    def load(self) -> Load:
        """How busy we are now."""
        return self._serving.load(trio.current_time())

    def model(self) -> ModelDescription | None:
        """What we can serve now; None while the engine does not answer."""
        engine = self._serving.engine
        return engine.model if engine is not None and engine.state is EngineState.READY else None

    def outdated(self) -> bool:
        """Whether we serve something else by now than the latest offer says, or are reached elsewhere."""
        model = self.model()
        if (None if model is None else model.config_digest) != self._offered:
            return True
        # Addresses may flap; a model that is not there must be said at once, a new relay can wait a moment.
        settled = trio.current_time() - self._offered_at >= ADDRESS_SECONDS
        return settled and self.signed is not None and self._addresses() != self.signed.offer.addresses

    def renew(self) -> SignedOffer | None:
        """Sign what we serve at this moment; None once we have left."""
        if self.withdrawn:
            return None
        model = self.model()
        self._version += 1
        now = self._unix_ms()
        offer = Offer(
            peer=self._transport.peer_id,
            epoch=self._epoch,
            version=self._version,
            model=model.name if model else "",
            config_digest=model.config_digest if model else "",
            engine=model.engine if model else "",
            engine_version=model.engine_version if model else "",
            judge_prompt="" if model is None else "compact" if model.judge_prompt == "compact" else "instructed",
            context_tokens=model.context_tokens if model else 0,
            slots=model.slots if model else 0,
            addresses=self._addresses(),
            issued=now,
            expires=now + LIFETIME_MS,
            features=tuple(sorted(features_of(model))) if model else (),
        )
        self.signed = sign_offer(offer, self._key)
        self._offered = model.config_digest if model else None
        self._offered_at = trio.current_time()
        return self.signed

    def _addresses(self) -> tuple[str, ...]:
        return self._transport.addresses()[:MAX_ADDRESSES]

    def withdraw(self) -> SignedOffer | None:
        """The signed goodbye; None where nothing was offered."""
        self.withdrawn = True
        if self.signed is not None:
            self.signed = sign_offer(withdraw(self.signed.offer, self._unix_ms()), self._key)
        return self.signed

    async def keep_published(self) -> None:
        """Bring every new offer into the DHT, as soon as there is anybody to hold it."""
        in_dht: SignedOffer | None = None
        while True:
            await trio.sleep(_PUBLISH_CHECK_SECONDS)
            signed = self.signed
            if signed is None or signed is in_dht or not self._transport.paths():
                continue
            try:
                await self._publish(signed)
                in_dht = signed
            except TransportError as error:
                log.debug("the offer is not in the DHT yet", reason=str(error))
                await trio.sleep(_PUBLISH_RETRY_SECONDS * self._rng.uniform(0.5, 1.0))

    async def _publish(self, signed: SignedOffer) -> None:
        holders = await self._transport.put_record(records.offer_key(self._transport.peer_id), signed.raw)
        log.debug("the offer is in the DHT", holders=holders)
        before, self._provided = self._provided, _keys_of(signed.offer)
        for key in before:
            if key not in self._provided:
                self._transport.unprovide(key)
        for key in self._provided:
            await self._transport.provide(key)


def _keys_of(offer: Offer) -> tuple[str, ...]:
    """Under which keys a peer is found that offers this."""
    if not offer.model or offer.withdrawn:
        return ()
    skills = map(records.skill_key, offer.features)
    return (records.ANY_KEY, records.model_key(offer.model), records.config_key(offer.config_digest), *skills)
