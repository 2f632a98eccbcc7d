"""`swarmd reputation export`, `import` and `check`: claims as a file, and whether a file or the database is whole."""

import os
import sys
import tempfile
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import click

from crdt_store.archive import ArchiveError, Record, read, write
from crdt_store.audit import Audit, Report
from crdt_store.checkpoints import claims_of, read_record
from crdt_store.forks import ForkProof
from daemon.cli.common import FAILED, USAGE, CommandFailed, client_of, common_options, json_option, loaded_of, merged
from daemon.cli.show import cell, print_facts, print_json
from swarmd import Client, NoDaemon

_PAGE_BYTES = 384 << 10
_PAGE_RECORDS = 1_000


@click.command("export")
@common_options
@click.argument("file", metavar="FILE|-")
@json_option
def export_claims(file: str, as_json: bool, **given: Path | None) -> None:
    """Write all claims and fork proofs that the daemon holds to FILE, or to standard output; docs/wire.md gives the format.

    A FILE that exists is replaced when all is written, and not before.
    """
    if file == "-" and as_json:
        raise CommandFailed("standard output has room for the archive or for --json, not for both; name a file", USAGE)
    counts: Counter[str] = Counter()
    with _written(file) as out:
        for piece in write(_held(client_of(given), counts)):
            out.write(piece)
            counts["bytes"] += len(piece)
    shown = {name: counts[name] for name in ("claims", "proofs", "bytes")}
    if as_json:
        print_json({"file": file} | shown)
    else:
        click.echo(f"{shown['claims']} claims and {shown['proofs']} fork proofs in {shown['bytes']} bytes", err=True)


@click.command("import")
@common_options
@click.argument("file", metavar="FILE|-")
@json_option
def import_claims(file: str, as_json: bool, **given: Path | None) -> int:
    """Add the claims of the archive FILE, or of standard input, to those held: each is verified as one of a stranger's.

    What is held already changes nothing. Of a damaged archive what stands before the damage is taken, and the exit code is 1.
    """
    client, fault, offset = client_of(given, timeout=120.0), "", None
    counts: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    with _opened(file) as source:
        batch: list[Record] = []
        size = 0
        try:
            for framed in read(source.read):
                batch.append(framed.record)
                size += _size(framed.record)
                if size >= _PAGE_BYTES or len(batch) >= _PAGE_RECORDS:
                    _send(client, batch, counts, refused)
                    batch, size = [], 0
        except ArchiveError as error:
            fault, offset = str(error), error.offset
        _send(client, batch, counts, refused)
    shown: dict[str, Any] = {name: counts[name] for name in ("inserted", "duplicate", "proofs")}
    shown |= {"refused": sum(refused.values()), "reasons": dict(refused)}
    if as_json:
        print_json(shown | {"fault": fault, "offset": offset})
    else:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(refused.items()))
        print_facts([(name, shown[name]) for name in ("inserted", "duplicate", "proofs", "refused")])
        if reasons:
            click.echo(f"refused: {cell(reasons)}")
        if fault:
            click.echo(f"swarmd: {cell(file)} is damaged at {cell(fault)}; what is before that was taken", err=True)
    return FAILED if fault else 0


@click.command()
@common_options
@click.argument("file", metavar="[FILE|-]", required=False)
@json_option
def check(file: str | None, as_json: bool, **given: Path | None) -> int:
    """Verify the archive FILE, or the daemon's database: pages, and every claim's signature, hash and place in its log.

    The first bad byte is named, counted from 0, and the exit code is then 1; it is 2 where there is nothing to check. The
    database of a stopped daemon is opened for reading alone.
    """
    if file is None:
        what, report = _database(given)
    else:
        what = file
        with _opened(file) as source:
            report = asdict(Audit().archive(source.read))
    if as_json:
        print_json({"checked": what, "ok": not report["fault"]} | report)
    elif report["fault"]:
        click.echo(f"{cell(what)}: {cell(report['fault'])}", err=True)
    else:
        click.echo(f"{cell(what)}: ok, {report['claims']} claims and {report['proofs']} fork proofs")
    return FAILED if report["fault"] else 0


def _database(given: dict[str, Path | None]) -> tuple[str, dict[str, Any]]:
    try:
        return "the daemon's database", client_of(given, timeout=600.0).check_claims()
    except NoDaemon:
        if merged(given).socket is not None:
            raise
    from crdt_store.store import StorageError  # a stopped daemon's files: of use here alone
    from daemon.claim_archive import check_file

    path = loaded_of(given).config.data_dir / "claims.sqlite"
    if not path.exists():
        raise CommandFailed(f"there is no database of claims at {path}; name a --data-dir that has one, or an archive", USAGE)
    try:
        report: Report = check_file(path)
    except StorageError as error:
        raise CommandFailed(str(error)) from None
    return str(path), asdict(report)


def _held(client: Client, counts: "Counter[str]") -> Iterator[Record]:
    after = None
    while True:
        reply = client.export_claims(after)
        for shown in reply["records"]:
            if isinstance(shown, dict):
                counts["proofs"] += 1
                yield ForkProof(b64decode(shown["first"]), b64decode(shown["second"]))
            else:
                record = b64decode(shown)
                counts["claims"] += claims_of(read_record(record))
                yield record
        after = reply["last"]
        if after is None:
            return


def _send(client: Client, batch: list[Record], counts: "Counter[str]", refused: "Counter[str]") -> None:
    if not batch:
        return
    claims = [b64encode(record).decode() for record in batch if isinstance(record, bytes)]
    proofs = [
        {"first": b64encode(record.first).decode(), "second": b64encode(record.second).decode()}
        for record in batch
        if isinstance(record, ForkProof)
    ]
    reply = client.import_claims(claims, proofs)
    counts.update({name: int(reply[name]) for name in ("inserted", "duplicate", "proofs")})
    refused.update(reply["refused"])


def _size(record: Record) -> int:
    return len(record) if isinstance(record, bytes) else len(record.first) + len(record.second)


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        with Path(file).open("rb") as source:
            yield source
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror or error}", USAGE) from None


@contextmanager
def _written(file: str) -> Iterator[BinaryIO]:
    """Standard output, or a file that appears whole or not at all."""
    if file == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(file)
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CommandFailed(f"{file} cannot be written: {error.strerror or error}") from None
