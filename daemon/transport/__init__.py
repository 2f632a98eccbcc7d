"""The network: the only folder that imports libp2p. Everything else sees `daemon.transport.interface`."""
