"""What DHT nodes ask each other: the five questions of libp2p's kad-dht and its one shape of answer, as values."""

from dataclasses import dataclass

from dht.contacts import Contact


@dataclass(frozen=True, slots=True)
class FindNode:
    """The peers nearest to `name`, a binary peer id."""

    name: bytes


@dataclass(frozen=True, slots=True)
class GetValue:
    """The record under `name`, and the peers nearest to it."""

    name: bytes


@dataclass(frozen=True, slots=True)
class PutValue:
    """Keep `value` under `name`."""

    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class GetProviders:
    """Who provides `name`, and the peers nearest to it."""

    name: bytes


@dataclass(frozen=True, slots=True)
class AddProvider:
    """The asker provides `name` at `addresses`."""

    name: bytes
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """Whether the other is there."""


Question = FindNode | GetValue | PutValue | GetProviders | AddProvider | Ping


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to any of them; what the question did not ask for is empty."""

    closer: tuple[Contact, ...] = ()
    value: bytes | None = None
    providers: tuple[Contact, ...] = ()
