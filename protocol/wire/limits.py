"""Every size that a peer could stretch, with its unit and source. Holds numbers alone."""

MAX_FRAME_BYTES = 1 << 20
"""One RPC frame: a window of a fast link, and the largest request with room to spare; gossip and DHT carry less."""

MAX_CHUNK_BYTES = 64 << 10
"""One item of a stream: a Yamux window of 256 KiB holds four, so a bulk call never blocks a token for long."""

MAX_GOSSIP_BYTES = 64 << 10
"""One gossip payload, as in Matrix (65,536 B); anything bigger is announced by hash and pulled."""

MAX_RECORD_BYTES = 8 << 10
"""One DHT record; py-libp2p's own 1 MiB lets a stranger fill 49 GiB."""

MAX_PROMPT_BYTES = 256 << 10
"""All messages of one job together, UTF-8."""

MAX_ANSWER_BYTES = 64 << 10
"""One committee answer, UTF-8; longer ones are cut by the token limit long before."""

MAX_ANSWER_CHARS = 1 << 20
"""All text of one routed answer: MAX_TOKENS tokens of the longest kind do not reach it."""

MAX_CLAIM_BYTES = 4 << 10
"""One signed claim in its envelope."""

MAX_CHECKPOINT_BYTES = 16 << 10
"""One checkpoint: a signed claim and rows of 63 before it, at most 14 KiB where every field is as long as it may be."""

MAX_TOKENS = 4096
"""Completion tokens that a peer may ask of another."""

MAX_NAME_CHARS = 193
"""`owner/name` of a model: two parts of 96 and a slash."""

MAX_COMMITTEE = 50
"""Members of one round; 5 to 9 is the advised size, 50 the simulated ceiling."""
