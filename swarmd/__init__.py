"""The client library of swarmd and its launcher. Uses the standard library alone, so any program may import it."""

from swarmd.client import ApiError, Client, ClientError, Event, NoDaemon

__all__ = ["ApiError", "Client", "ClientError", "Event", "NoDaemon"]
