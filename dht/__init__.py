"""Who offers what: offers, records, the Kademlia node that finds them, presence, the peer cache. Pure; no socket, no file.

The public surface (wall times are unix milliseconds, `now` is the monotonic clock in seconds):

    offers.Offer(peer, epoch, version, model, config_digest, engine, engine_version, judge_prompt, context_tokens, slots,
                 addresses, issued, expires, withdrawn, features)          wire struct
    offers.SignedOffer(offer, hash, raw)
    offers.sign_offer(offer, key) -> SignedOffer         offers.open_offer(raw, wall_ms) -> SignedOffer, raises RemoteError
    offers.better(a, b) -> SignedOffer                   offers.renewal_delay(rng) -> float (seconds)
    offers.renewed(offer, wall_ms) -> Offer              offers.withdraw(offer, wall_ms) -> Offer, the signed leave

    records.offer_key(peer); for providers: model_key(model), skill_key(word), config_key(digest), content_key(hash), ANY_KEY
    records.open_record(key, value, wall_ms) -> SignedOffer, raises RemoteError;  open_for_store: the same for a RecordStore

    node.Node(me, open_record, rng): one Kademlia node without its network
        .responder.answer(question, asker, now, wall) -> Answer, raises RemoteError      what it answers (kad_messages)
        .lookup(name, config) -> (Lookup, Begin); lookup.handle(event, now) -> effects until Done; then .concluded(lookup, done)
        .answered(contact, now), .silent(peer)            what an answer or a silence does to the table
        .upkeep.handle(event, now) -> effects             when to refresh, republish, check, expire
    queries.Values, Providers, holders(done); GET, FIND, STORE, REFRESH: what a lookup is for

    presence.Presence(peer, epoch, beat, offer_hash, busy, wall, offer, waiting, first_token_ms, first_token_p95_ms, slot_ms)
        wire struct on gossip topic presence.TOPIC
    presence.sign_presence(presence, key) -> bytes

    directory.Directory(me, epoch, sign, rng, config=Config()).handle(event, now) -> list[Effect]
        sign is `partial(sign_presence, key=key)`; the first OwnOffer starts the heart, a first Tick the sweeps
        events  PresenceHeard(author, raw, wall), OfferHeard(raw, wall), OwnOffer(signed, wall), OwnLoad(load), CallFailed(peer),
                CallSucceeded(peer), Connected(peer), Disconnected(peer), Moved(), Tick(wall)
        effects SendPresence(payload), FetchOffer(peer), RenewOffer(), WakeAt(time), PeerJoined(peer),
                PeerSuspect(peer, reason), PeerGone(peer, reason), Refused(peer, error)
        .candidates(model, now) -> tuple[Candidate, ...]     routable peers; model "" for any
        .peers(now) -> tuple[PeerView, ...]                  .offer_of(peer) -> SignedOffer | None
        to leave: OwnOffer(sign_offer(withdraw(offer, wall), key), wall) and send the SendPresence it gives

    peer_cache.PeerCache(entries), .encode() -> bytes, peer_cache.decode_cache(raw) -> PeerCache,
        .seen(peer, addresses, wall_ms) -> PeerCache, .ordered() -> tuple[CachedPeer, ...]

    grants.Mesh(name, founder, salt).id                  grants.Grant(mesh, serial, subject, rights, issued, expires)
    grants.verify_chain(mesh, chain, peer, wall_ms, revoked) -> Membership, raises RemoteError(refused)
    revocations.Revocations(mesh).add(raw) -> Known | None, .voids(grant, authorities), .digest(), .all()
    invites.write_invite(invite, recipient, key, ephemeral) -> str, read_invite(text, key, wall_ms) -> Invite,
        accept(invite, key, wall_ms) -> chain, InviteBook(entries).with_entry, .admit, .revoke
"""
