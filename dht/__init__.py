"""Who offers what: offers, records, presence and the peer cache. Pure; owns no socket and no file.

The public surface (wall times are unix milliseconds, `now` is the monotonic clock in seconds):

    offers.Offer(peer, epoch, version, model, config_digest, engine, engine_version, judge_prompt, context_tokens, slots,
                 addresses, issued, expires, withdrawn, features)          wire struct
    offers.SignedOffer(offer, hash, raw)
    offers.sign_offer(offer, key) -> SignedOffer         offers.open_offer(raw, wall_ms) -> SignedOffer, raises RemoteError
    offers.better(a, b) -> SignedOffer                   offers.renewal_delay(rng) -> float (seconds)
    offers.renewed(offer, wall_ms) -> Offer              offers.withdraw(offer, wall_ms) -> Offer, the signed leave

    records.offer_key(peer), records.model_key(model), records.ANY_KEY
    records.validate(key, value, wall_ms) -> bool        records.choose(key, values) -> int
    records.open_record(key, value, wall_ms) -> SignedOffer, raises RemoteError

    presence.Presence(peer, epoch, beat, offer_hash, busy, wall, offer, waiting, first_token_ms, first_token_p95_ms, slot_ms)
        wire struct on gossip topic presence.TOPIC
    presence.sign_presence(presence, key) -> bytes

    directory.Directory(me, epoch, sign, rng, config=Config()).handle(event, now) -> list[Effect]
        sign is `partial(sign_presence, key=key)`; the first OwnOffer starts the heart, a first Tick the sweeps
        events  PresenceHeard(author, raw, wall), OfferHeard(raw, wall), OwnOffer(signed, wall), OwnLoad(load), CallFailed(peer),
                CallSucceeded(peer), Connected(peer), Disconnected(peer), Tick(wall)
        effects SendPresence(payload), FetchOffer(peer), RenewOffer(), WakeAt(time), PeerJoined(peer),
                PeerSuspect(peer, reason), PeerGone(peer, reason), Refused(peer, error)
        .candidates(model, now) -> tuple[Candidate, ...]     routable peers; model "" for any
        .peers(now) -> tuple[PeerView, ...]                  .offer_of(peer) -> SignedOffer | None
        to leave: OwnOffer(sign_offer(withdraw(offer, wall), key), wall) and send the SendPresence it gives

    peer_cache.PeerCache(entries), .encode() -> bytes, peer_cache.decode_cache(raw) -> PeerCache,
        .seen(peer, addresses, wall_ms) -> PeerCache, .forget(peer) -> PeerCache, .ordered() -> tuple[CachedPeer, ...]
"""
