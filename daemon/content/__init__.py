"""Model files by content hash: shared under a rate limit, fetched from several peers at once, within a quota; run by nobody."""
