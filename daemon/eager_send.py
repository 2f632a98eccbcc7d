"""Sends on a socket at once, as far as the kernel takes it, and waits only for the rest. Decides nothing about what is sent."""

import os

import trio


def send_now(stream: trio.abc.SendStream, payload: bytes) -> int:
    """How many bytes of `payload` left without waiting, 0 where that cannot be told; raises OSError.

    Trio's own `send_all` gives up its turn even where nothing has to wait, which costs as much as to make a small event. Who
    calls this in a loop has to give it up now and then. One task sends at a time, as with `send_all`.
    """
    if not isinstance(stream, trio.SocketStream):
        return 0
    try:
        return os.write(stream.socket.fileno(), payload)
    except BlockingIOError:
        return 0
