"""libp2p's kad-dht on the wire: protobuf to and from `dht.kad_messages`, each behind its length. Decides what is malformed."""

from collections.abc import Iterable, Iterator
from functools import lru_cache

from google.protobuf.message import DecodeError
from libp2p.kad_dht.common import format_time_rfc3339
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from daemon.transport.addresses import MAX_ADDRESS_BYTES, text_of_address
from dht.contacts import Contact, valid_contact
from dht.kad_messages import AddProvider, Answer, FindNode, GetProviders, GetValue, Ping, PutValue, Question
from dht.keyspace import name_of_peer
from nat.addresses import MAX_ADDRESSES
from protocol.wire.errors import Code, RemoteError, malformed
from protocol.wire.ids import PeerId

MAX_MESSAGE_BYTES = 256 << 10
MAX_PEERS = 20
"""Closer peers that are read of one message: k of Kademlia."""

MAX_PROVIDERS = 40

MAX_ID_BYTES = 64
"""Longer ones are none that we could use; what is read of strangers is remembered, so it must be small."""

_CLOSER, _PROVIDER = "closerPeers", "providerPeers"

_KIND = Message.MessageType


class VarintFrames:
    """Cuts a byte stream into messages that follow their length as a varint."""

    def __init__(self, limit: int = MAX_MESSAGE_BYTES) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, received: bytes) -> Iterator[bytes]:
        """The messages that are whole now, each cut off when it is asked for: 64 KiB may hold 65,000 of them, which take 90 ms.

        Raises RemoteError where one is too long or its length is none.
        """
        self._rest += received
        while (cut := self._cut()) is not None:
            yield cut

    @property
    def partial(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._rest)

    def _cut(self) -> bytes | None:
        size = shift = 0
        for index, byte in enumerate(self._rest[:4]):
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                if size > self._limit:
                    raise RemoteError(Code.OVERSIZED, f"a DHT message of {size} bytes is over the limit of {self._limit}")
                end = index + 1 + size
                if len(self._rest) < end:
                    return None
                frame = bytes(self._rest[index + 1 : end])
                del self._rest[:end]
                return frame
            shift += 7
        if len(self._rest) >= 4:
            raise RemoteError(Code.OVERSIZED, "a DHT message has a length of more than three bytes")
        return None


def encode_question(question: Question, asker: Contact) -> bytes:
    """A question as a frame."""
    match question:
        case FindNode(name):
            message = Message(type=_KIND.FIND_NODE, key=name)
        case GetValue(name):
            message = Message(type=_KIND.GET_VALUE, key=name)
        case GetProviders(name):
            message = Message(type=_KIND.GET_PROVIDERS, key=name)
        case PutValue(name, value):
            message = Message(type=_KIND.PUT_VALUE, key=name)
            message.record.key, message.record.value = name, value
        case AddProvider(name, addresses):
            message = Message(type=_KIND.ADD_PROVIDER, key=name)
            _add(message.providerPeers, Contact(asker.peer, asker.place, addresses))
        case Ping():
            message = Message(type=_KIND.PING)
    return encode_varint_prefixed(message.SerializeToString())


def decode_question(raw: bytes, asker: PeerId) -> Question:
    """A stranger's question; raises RemoteError where it is none."""
    message = _parsed(raw)
    match message.type:
        case _KIND.FIND_NODE:
            return FindNode(message.key)
        case _KIND.GET_VALUE:
            return GetValue(message.key)
        case _KIND.GET_PROVIDERS:
            return GetProviders(message.key)
        case _KIND.PUT_VALUE if message.HasField("record") and message.record.key == message.key:
            return PutValue(message.key, message.record.value)
        case _KIND.ADD_PROVIDER:
            ours = name_of_peer(asker)
            listed = [peer for peer in message.providerPeers[:MAX_PEERS] if peer.id == ours]
            return AddProvider(message.key, _texts(_short(listed[0].addrs)) if listed else ())
        case _KIND.PING:
            return Ping()
    raise malformed("a DHT message of no known kind")


def encode_answer(question: Question, answer: Answer) -> bytes:
    """The answer to `question` as a frame. Stored and provided are confirmed by an echo, as stock nodes do."""
    match question:
        case FindNode():
            message = Message(type=_KIND.FIND_NODE)
        case GetValue(name):
            message = Message(type=_KIND.GET_VALUE, key=name)
            if answer.value is not None:
                _record(message, name, answer.value)
        case GetProviders(name):
            message = Message(type=_KIND.GET_PROVIDERS, key=name)
        case PutValue(name, value):
            message = Message(type=_KIND.PUT_VALUE, key=name)
            _record(message, name, value)
        case AddProvider(name):
            message = Message(type=_KIND.ADD_PROVIDER, key=name)
        case Ping():
            message = Message(type=_KIND.PING)
    closer = [_listed(_CLOSER, contact) for contact in answer.closer]
    providers = [_listed(_PROVIDER, contact) for contact in answer.providers]
    return encode_varint_prefixed(b"".join((message.SerializeToString(), *closer, *providers)))


def decode_answer(raw: bytes, question: Question) -> Answer:
    """What a stranger answered to `question`; raises RemoteError where it does not answer it."""
    message = _parsed(raw)
    if message.type != _KIND_OF[type(question)]:
        raise malformed("a DHT answer to another question")
    value = None
    if isinstance(question, GetValue) and message.HasField("record") and message.record.key == question.name:
        value = message.record.value
    closer = contacts_of(message.closerPeers)
    providers = contacts_of(message.providerPeers, MAX_PROVIDERS) if isinstance(question, GetProviders) else ()
    return Answer(closer, value, providers)


def contacts_of(peers: "Iterable[Message.Peer]", most: int = MAX_PEERS) -> tuple[Contact, ...]:
    """The peers of a message, without those whose id is none that we can meet."""
    listed = (_contact(peer.id, _short(peer.addrs)) for peer in list(peers)[:most] if 0 < len(peer.id) <= MAX_ID_BYTES)
    return tuple(contact for contact in listed if contact is not None)


@lru_cache(maxsize=4096)  # the same few hundred peers are in every answer
def _contact(raw: bytes, addresses: tuple[bytes, ...]) -> Contact | None:
    name = text_of_id(raw)
    return valid_contact(name, _texts(addresses)) if name else None


@lru_cache(maxsize=4096)
def text_of_id(raw: bytes) -> str:
    """A binary peer id as text; "" where it is none."""
    try:
        return ID(raw).to_base58()
    except Exception:  # noqa: BLE001 - the library raises many kinds for bytes that are no id
        return ""


@lru_cache(maxsize=4096)
def _bytes_of_address(text: str) -> bytes:
    try:
        return bytes(Multiaddr(text).to_bytes())
    except Exception:  # noqa: BLE001 - as above
        return b""


@lru_cache(maxsize=4096)
def library_id(peer: PeerId) -> ID:
    """A peer id in the library's shape."""
    return ID.from_base58(peer)


def _short(addresses: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(raw for raw in list(addresses)[:MAX_ADDRESSES] if len(raw) <= MAX_ADDRESS_BYTES)


def _texts(addresses: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(text for raw in addresses if (text := text_of_address(raw)))


def _parsed(raw: bytes) -> Message:
    message = Message()
    try:
        message.ParseFromString(raw)
    except DecodeError:
        raise malformed("a DHT message is no protobuf") from None
    return message


def _add(peers: "object", contact: Contact) -> None:
    addresses = [raw for text in contact.addresses if (raw := _bytes_of_address(text))]
    peers.add(id=name_of_peer(contact.peer), addrs=addresses)  # type: ignore[attr-defined]


@lru_cache(maxsize=4096)
def _listed(field: str, contact: Contact) -> bytes:
    """`contact` as an entry of a list: parts of a protobuf message follow each other as they are."""
    message = Message()
    _add(getattr(message, field), contact)
    return bytes(message.SerializeToString())


def _record(message: Message, name: bytes, value: bytes) -> None:
    message.record.key, message.record.value = name, value
    message.record.timeReceived = format_time_rfc3339()


_KIND_OF = {
    FindNode: _KIND.FIND_NODE,
    GetValue: _KIND.GET_VALUE,
    GetProviders: _KIND.GET_PROVIDERS,
    PutValue: _KIND.PUT_VALUE,
    AddProvider: _KIND.ADD_PROVIDER,
    Ping: _KIND.PING,
}
