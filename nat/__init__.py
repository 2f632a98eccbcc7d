"""How a peer is reached: addresses, paths and their choice. Pure; owns no socket."""
