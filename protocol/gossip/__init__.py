"""Gossip's pure decisions: what a peer's conduct is worth, and whom a mesh consists of. No message, no clock, no socket."""
