"""The local surface: HTTP over the Unix socket and loopback. Sees the node only through `daemon.api.backend.Backend`."""
