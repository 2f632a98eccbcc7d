"""Calls a running daemon over its local socket: HTTP/1.1, JSON and server-sent events. Knows nothing of the mesh."""

import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from swarmd import places

CONTROL = "/swarmd/v1"
MAX_REPLY_BYTES = 64 << 20
"""A whole reply held in memory; the largest known one, all claims of a mesh, is far below it."""
MAX_LINE_BYTES = 4 << 20
"""One line of an event stream; the longest is a round's final record."""
SILENCE_S = 600.0
"""How long a question without a time limit may go without a single event."""


class ClientError(Exception):
    """A call on the daemon failed. The message is one sentence for people."""


class NoDaemon(ClientError):
    """No daemon listens on the socket."""

    def __init__(self, path: str, start_command: str = "swarmd start") -> None:
        super().__init__(f"no swarmd daemon answers on {path}; start one with: {start_command}")
        self.path = path


class ApiError(ClientError):
    """The daemon answered with an error: its stable `code`, its sentence, and the HTTP status (200: it came within a stream)."""

    def __init__(self, code: str, message: str, status: int) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


class Event(NamedTuple):
    """One event of an `ask`: "token", "progress" or "result", with its fields."""

    name: str
    fields: dict[str, Any]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(self._path)
        except BaseException:
            self.sock.close()
            raise


class Client:
    """The daemon on one socket. Every call opens its own connection, so a client may be shared by threads.

    `timeout` bounds, in seconds, the wait for each piece of a reply.
    """

    def __init__(self, socket_path: str | os.PathLike[str] | None = None, *, timeout: float = 30.0) -> None:
        self.socket_path = os.fspath(socket_path) if socket_path is not None else str(places.socket_path())
        self.timeout = timeout
        self.start_command = "swarmd start"
        """What NoDaemon tells the user to run."""

    def status(self) -> dict[str, Any]:
        """The daemon's state ("ready", "degraded", ...) with the reasons, its addresses, engine and mesh."""
        return self._call("GET", "/status")

    def peers(self) -> list[dict[str, Any]]:
        """The peers it knows, each with state, path and model."""
        return _rows(self._call("GET", "/peers"), "peers")

    def models(self) -> list[dict[str, Any]]:
        """The models that can be asked for, with who serves them."""
        return _rows(self._call("GET", "/models"), "models")

    def rounds(self) -> list[dict[str, Any]]:
        """The rounds it took part in, newest first."""
        return _rows(self._call("GET", "/rounds"), "rounds")

    def round(self, round_id: str) -> dict[str, Any]:
        """One round: members, answer classes, votes, ranking and the reasons for the outcome."""
        return self._call("GET", f"/rounds/{_part(round_id)}")

    def asks(self) -> list[dict[str, Any]]:
        """The latest questions that one peer answered, newest first; what they were about is not kept."""
        return _rows(self._call("GET", "/asks"), "asks")

    def why(self, named: str = "last") -> dict[str, Any]:
        """Why a question went where it did ("what" is "ask") or why a round came out as it did ("round"), by its id or "last"."""
        return self._call("GET", f"/why/{_part(named)}")

    def verify(self, round_id: str) -> dict[str, Any]:
        """Replay a round's transcript; "ok" says whether it gave the same verdict to the bit."""
        return self._call("POST", f"/rounds/{_part(round_id)}/verify")

    def reputation(self, peer: str | None = None) -> dict[str, Any]:
        """The claims the daemon holds, or those about one peer."""
        return self._call("GET", "/reputation" if peer is None else f"/reputation/{_part(peer)}")

    def export_claims(self, after: Sequence[str | int] | None = None) -> dict[str, Any]:
        """Some of the signed claims and fork proofs held ("records", in base64); ask again with its "last" until that is None."""
        return self._call("POST", "/reputation/export", {"after": after})

    def import_claims(self, claims: Sequence[str], proofs: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
        """Add signed claims and fork proofs (base64; at most 1 MiB together); how many were new, held already and refused."""
        return self._call("POST", "/reputation/import", {"claims": list(claims), "proofs": list(proofs)})

    def check_claims(self) -> dict[str, Any]:
        """Verify the daemon's database of claims; "fault" is "" where it is whole. About 20 s for 100,000 claims."""
        return self._call("POST", "/reputation/check", {})

    def probe(
        self, peer: str | None = None, *, skill: str | None = None, count: int = 10, rounds: int = 0, timeout: float = 600.0
    ) -> dict[str, Any]:
        """Ask `peer`, or each, `count` questions of known answer, run `rounds` rounds on such; what was right, by skill."""
        body = {"peer": peer, "skill": skill, "count": count, "rounds": rounds}
        return self._call("POST", "/probe", {name: value for name, value in body.items() if value is not None}, timeout)

    def invites(self) -> list[dict[str, Any]]:
        """The invites into its private mesh that the daemon gave, newest first."""
        return _rows(self._call("GET", "/invites"), "invites")

    def create_invite(self, peer: str | None = None, *, expires_s: float = 86400.0, may_invite: bool = False) -> dict[str, Any]:
        """A new invite for `peer` (None: for the first who comes); its text, a secret, is "invite"."""
        return self._call("POST", "/invites/create", {"recipient": peer, "expires_s": expires_s, "may_invite": may_invite})

    def revoke_invite(self, named: str) -> dict[str, Any]:
        """Take back an invite by its number, with whoever came by it, or remove a peer from the private mesh."""
        return self._call("POST", "/invites/revoke", {"named": named})

    def netcheck(self) -> dict[str, Any]:
        """What the daemon knows of its place in the network; None where it does not know."""
        return self._call("GET", "/netcheck")

    def lookup(self, what: str) -> dict[str, Any]:
        """Look in the DHT for a peer's offer, a model's peers, a config digest or a key; every question on every path."""
        return self._call("GET", f"/lookup/{quote(what, safe='/')}")

    def ping(self, peer: str) -> dict[str, Any]:
        """One round trip to a peer, with the path that it took."""
        return self._call("POST", f"/ping/{_part(peer)}")

    def config(self) -> dict[str, Any]:
        """The configuration the daemon runs with; secrets are masked."""
        return self._call("GET", "/config")

    def version(self) -> dict[str, Any]:
        """The daemon's version."""
        return self._call("GET", "/version")

    def stop(self) -> dict[str, Any]:
        """Ask the daemon to drain and end; returns before it has ended."""
        return self._call("POST", "/stop")

    def ask(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        strategy: str = "route",
        timeout_s: float | None = None,
        **options: str | float | bool | None,
    ) -> Iterator[Event]:
        """Ask the mesh; yields events as they come, the last one being "result". Closing the iterator cancels the question.

        `prompt` is a text or chat messages. `strategy` is "route" (one peer), "majority" or "rank" (a committee) or "auto".
        `options` are committee, peer, model, max_tokens, temperature, seed, verify (another engine checks the answer) and
        rationale (a round's judges say in words what decided them). Without `timeout_s` a question may take an hour.
        Raises ApiError where the daemon refuses or fails.
        """
        body: dict[str, Any] = {"strategy": strategy, "timeout_s": timeout_s}
        body["prompt" if isinstance(prompt, str) else "messages"] = prompt if isinstance(prompt, str) else list(prompt)
        body.update(options)
        body = {name: value for name, value in body.items() if value is not None}
        # The daemon enforces timeout_s itself and says so; ours only catches a daemon that hangs.
        connection, response = self._open("POST", "/ask", body, SILENCE_S if timeout_s is None else timeout_s + 10.0)
        return _events(connection, response)

    def content(self, offered: bool = False) -> list[dict[str, Any]]:
        """The model files that the daemon shares and fetches, or those that connected peers offer."""
        return _rows(self._call("GET", "/content/offered" if offered else "/content"), "files")

    def seed(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Share a model file of this box; returns its address. Hashing takes some seconds per gigabyte."""
        return self._call("POST", "/content/seed", {"path": os.path.abspath(path)}, SILENCE_S)

    def pull(self, address: str, peers: Sequence[str] = (), name: str | None = None) -> Iterator[Event]:
        """Fetch a file by its address; yields "progress" events and last a "result". Closing the iterator pauses the fetch."""
        body: dict[str, Any] = {"address": address, "peers": list(peers)} | ({"name": name} if name else {})
        connection, response = self._open("POST", "/content/pull", body, SILENCE_S)
        return _events(connection, response)

    def push(self, peer: str, file: str) -> dict[str, Any]:
        """Ask `peer` to fetch a shared file, by its name or the beginning of its address."""
        return self._call("POST", "/content/push", {"peer": peer, "file": file})

    def unshare(self, file: str) -> dict[str, Any]:
        """Share a file no more; one that was fetched is deleted."""
        return self._call("POST", "/content/remove", {"file": file})

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None, timeout: float | None = None) -> dict[str, Any]:
        connection, response = self._open(method, path, body, timeout or self.timeout)
        try:
            return _decode(response.read(MAX_REPLY_BYTES + 1))
        except (OSError, http.client.HTTPException) as error:
            raise ClientError(f"the daemon's reply broke off: {error}") from error
        finally:
            connection.close()

    def _open(
        self, method: str, path: str, body: dict[str, Any] | None, timeout: float
    ) -> tuple[_UnixConnection, http.client.HTTPResponse]:
        if places.may_be_planted(self.socket_path):
            raise ClientError(f"{self.socket_path} lies in a folder that is not yours alone, so anybody may answer on it")
        connection = _UnixConnection(self.socket_path, timeout)
        try:
            payload = None if body is None else json.dumps(body).encode()
            connection.request(method, CONTROL + path, payload, {} if body is None else {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status >= 400:
                raise _api_error(response.status, response.read(MAX_REPLY_BYTES))
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _explained(error, self.socket_path, timeout, self.start_command) from error
        except BaseException:
            connection.close()
            raise
        return connection, response


def _explained(error: OSError | http.client.HTTPException, path: str, timeout: float, start_command: str) -> ClientError:
    match error:
        case FileNotFoundError() | ConnectionRefusedError() | NotADirectoryError():
            return NoDaemon(path, start_command)
        case PermissionError():
            return ClientError(f"{path} belongs to another user")
        case TimeoutError():
            return ClientError(f"the daemon on {path} did not answer within {timeout:g} s")
        case _:
            return ClientError(f"talking to the daemon on {path} failed: {error}")


def _events(connection: _UnixConnection, response: http.client.HTTPResponse) -> Iterator[Event]:
    name, pieces = "", list[str]()
    try:
        while line := response.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise ClientError(f"the daemon sent an event of more than {MAX_LINE_BYTES} bytes")
            field, _, value = line.decode("utf-8", "replace").rstrip("\r\n").partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                pieces.append(value)
            elif not field and not value and pieces:
                fields = _decode("\n".join(pieces).encode())
                if name == "error":
                    raise ApiError(str(fields.get("code", "internal")), str(fields.get("message", "the question failed")), 200)
                yield Event(name, fields)
                if name == "result":
                    return
                name, pieces = "", []
        raise ClientError("the daemon closed the stream before the result")
    except TimeoutError:
        raise ClientError("the daemon sent nothing for too long") from None
    except (OSError, http.client.HTTPException) as error:
        raise ClientError(f"the stream from the daemon broke off: {error}") from error
    finally:
        response.close()
        connection.close()


def _api_error(status: int, raw: bytes) -> ApiError:
    try:
        error = json.loads(raw)["error"]
        return ApiError(str(error.get("code") or error.get("type") or "error"), str(error["message"]), status)
    except (ValueError, LookupError, TypeError, AttributeError):
        return ApiError("error", f"the daemon answered with HTTP status {status}", status)


def _decode(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_REPLY_BYTES:
        raise ClientError(f"the daemon's reply has more than {MAX_REPLY_BYTES} bytes")
    try:
        decoded = json.loads(raw)
    except ValueError:
        raise ClientError("the daemon's reply is not JSON") from None
    if not isinstance(decoded, dict):
        raise ClientError("the daemon's reply is not a JSON object")
    return decoded


def _rows(reply: dict[str, Any], name: str) -> list[dict[str, Any]]:
    rows = reply.get(name, [])
    return rows if isinstance(rows, list) else []


def _part(text: str) -> str:
    return quote(text, safe="")
