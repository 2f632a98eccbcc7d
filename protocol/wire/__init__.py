"""The wire contract: identities, frames, signed envelopes, limits and errors. Another language could be written from it."""
