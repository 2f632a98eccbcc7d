"""What the mesh remembers: signed claims, their logs, merge, forks, sync and storage.

Only `storage` touches a disk; everything else is pure. The public surface:

    claims.Claim(issuer, epoch, seq, previous, subject, kind, skill, value, evidence, time)          wire struct
    claims.Kind                                      CALL_SERVED, CALL_FAILED, ROUND_WON, ROUND_TOOK_PART, ROUND_ABORTED
    claims.SignedClaim(claim, hash, raw)             a verified claim and the bytes it came in
    claims.sign_claim(claim, key) -> SignedClaim     claims.open_claim(raw) -> SignedClaim, raises RemoteError
    checkpoints.compact(entries) -> SignedClaim      many claims of a log under the last one's signature, as one record
    checkpoints.read_record, open_record             as read_claim and open_claim, for claims and checkpoints
    forks.ForkProof(first, second)                   wire struct of two records; forks.open_proof(proof) -> Fork

    replica.Replica(bounds=Bounds())                 the set itself, in memory
        .insert(raw) -> Inserted | Duplicate | Gap | Forked | Ignored      raises RemoteError for what is no valid claim
        .insert_proof(proof) -> Forked | Duplicate                         raises RemoteError
        .digest() -> Hash        .heads(issuer) -> IssuerHeads        .claims(issuer=None) -> Iterator[SignedClaim]
        .forks() -> tuple[Fork, ...]         .issuers() -> tuple[PeerId, ...]         len(replica)

    storage.ClaimStorage(path), memory.MemoryStorage()                     the two implementations of store.Storage
    store.ClaimStore(storage, key, now_ms)           a replica that is on disk, and our own log; opens a new epoch
        .record(statement, now_ms) -> SignedClaim    durable before it returns: send it only then
        .insert_many(raws) -> list[Outcome | RemoteError]      .insert_proof(proof)      .replica      .epoch

    sync.Sync(store).handle(event, now) -> list[Effect]      pulls what others have
        events  Begin(peer), Announced(peer, announcement), HeadsArrived(peer, reply), ChunkArrived(peer, chunk),
                RangeEnded(peer), CallFailed(peer)
        effects AskHeads(peer, request), AskRange(peer, request), Fault(peer, error), Finished(peer, inserted)
    sync_messages.serve_heads(replica, request) -> HeadsReply         answers RPC "claims.heads"
    sync_messages.serve_range(replica, request) -> Iterator[RangeChunk]             answers RPC "claims.range"
    sync_messages.announce(replica, issuer) -> Announcement  what gossip topic "/swarmd/heads/1" carries
"""
