"""Who offers what: offers, records, presence and the peer cache. Pure; owns no socket and no file."""
