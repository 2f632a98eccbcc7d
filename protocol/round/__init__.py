"""A committee does one job: draw, work, seal, reveal, judge, fold, record. Pure machines; no clock, no socket, no randomness.

    messages.py    Header(job, candidates, nonce, created_ms, strategy, committee, quorum_milli, durations, fold), Candidate,
                   Durations, FoldParameters; sign(message, key) -> bytes; read_header(raw) -> Held (.hash is the round's id)
    requester.py   RequesterMachine(key, header)                      .handle(event, now) -> list[Effect]
    member.py      MemberMachine(key, header_raw, entropy, unix_ms, judge_prompt)   raises RemoteError: the header is refused
                   both: .round (Hash), .closed (bool), .serve(hashes) -> list[bytes] for "round.pull"
    events.py      events in:   Started, Received, Pulled, Answered, AnswerFailed, Judged, JudgeFailed, PeerGone, Woken, Stopped,
                                Explained
                   effects out: Send, Pull, WakeAt, Generate, Judge, StopWork, Progress, Fault, Equivocation, Folded, Closed,
                                Explain
    judging.py     judge_turns(style, job, own_answer, (first, second), seed), log_odds_milli(log_probabilities)
    rationale.py   what a judge adds in words once its ballot is sealed
    transcript.py  replay(raw) -> Replayed: everything checked again, every table
    fold.py        fold(...) -> Result; verdict_hash(result)

Rules for a driver. `entropy` is `os.urandom`. A peer that asks and also sits runs both machines, and what either sends to (or
pulls from) its own id goes to the other; what arrives from outside goes to both. One timer per machine: the newest `WakeAt`
replaces the one before. `Send` is best effort: the machines repeat what matters. After `Closed`, keep the machine for the
header's `durations.total_ms` to serve pulls and repeat its last message; `handle` stays safe to call. `Folded` (requester) comes
one round trip before `Closed`: answer the user then. Never join a round made before this process started: it may have signed in
it already, and a second nonce or seal of one peer is equivocation.
"""
