"""The peer's key, its epoch and its data folder."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from daemon import identity, paths
from daemon.identity import IdentityError, load_or_create_key, locked, next_epoch, open_identity
from protocol.wire.ids import is_peer_id

KEY = "identity.pem"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder that was used once."""
    data = tmp_path / "data"
    with open_identity(data, lambda: 1000.0):
        pass
    return data


def pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, password: bytes = b"") -> bytes:
    protection = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)


def test_the_peer_stays_and_its_epoch_grows(tmp_path: Path) -> None:
    data = tmp_path / "deep" / "data"
    with open_identity(data, lambda: 1000.0) as first:
        assert is_peer_id(first.peer_id)
        assert first.epoch == 1000
    with open_identity(data, lambda: 500.0) as second:
        assert second.peer_id == first.peer_id
        assert second.epoch == 1001
    with open_identity(data, lambda: 2000.5) as third:
        assert third.epoch == 2000


def test_what_is_made_is_private(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert {path.name for path in folder.iterdir()} == {KEY, "epoch", "lock"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_that_others_may_read_is_refused_with_the_command_that_helps(folder: Path, mode: int) -> None:
    key = folder / KEY
    key.chmod(mode)
    before = key.read_bytes()
    with pytest.raises(IdentityError, match=rf"others may read the key {key}; run: chmod 600 {key}"):
        load_or_create_key(folder)
    assert key.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"hello", "is damaged"),
        (b"\0" * 32, "is damaged"),
        (pem(Ed25519PrivateKey.generate())[:60], "is damaged"),
        (pem(Ed25519PrivateKey.generate(), b"password"), "is damaged or not an unencrypted PEM"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "is not an Ed25519 key"),
        (pem(Ed25519PrivateKey.generate()) + b"x" * 5000, "is not an Ed25519 key"),
    ],
    ids=["empty", "text", "zeros", "cut", "password", "p256", "long"],
)
def test_a_wrong_key_is_refused_and_left_alone(folder: Path, content: bytes, sentence: str) -> None:
    (folder / KEY).write_bytes(content)
    with pytest.raises(IdentityError, match=sentence):
        load_or_create_key(folder)
    assert (folder / KEY).read_bytes() == content


def test_a_key_that_is_no_file_is_refused(folder: Path) -> None:
    key, elsewhere = folder / KEY, folder / "elsewhere"
    key.rename(elsewhere)
    makers: list[tuple[Callable[[], object], str]] = [
        (key.mkdir, "not a regular file"),
        (lambda: os.mkfifo(key, 0o600), "not a regular file"),
        (lambda: key.symlink_to(elsewhere), "it is a link"),
    ]
    for make, sentence in makers:
        make()
        with pytest.raises(IdentityError, match=sentence):
            load_or_create_key(folder)
        key.rmdir() if key.is_dir() else key.unlink()


def test_a_key_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(IdentityError, match="belongs to another user"):
        load_or_create_key(folder)


def test_what_a_killed_writer_left_is_gone_at_the_next_start(folder: Path) -> None:
    left = folder / ".mesh.json.4242.new"
    left.write_text("half a file")
    with open_identity(folder, lambda: 2000.0):
        assert not left.exists()


def test_a_lost_key_is_never_replaced_silently(folder: Path) -> None:
    (folder / KEY).unlink()
    with pytest.raises(IdentityError, match="is gone from a folder in use; restore it, or start as a new peer"):
        load_or_create_key(folder)
    assert not (folder / KEY).exists()


def test_a_full_disk_leaves_no_half_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(IdentityError, match="cannot be written: No space left on device"):
        load_or_create_key(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "x", "-1", "9" * 16, "9" * 40, "1.5"])
def test_a_damaged_epoch_is_refused(folder: Path, content: str) -> None:
    (folder / "epoch").write_text(content)
    with pytest.raises(IdentityError, match="is damaged; it must hold the number of the last run"):
        next_epoch(folder, lambda: 1.0)


def test_the_epoch_is_on_disk_before_it_is_used(folder: Path) -> None:
    epoch = next_epoch(folder, lambda: 5000.0)
    assert (folder / "epoch").read_text() == f"{epoch}\n"


def test_an_epoch_that_cannot_be_kept_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(identity, "write_durably", refuse)
    with pytest.raises(IdentityError, match="epoch cannot be written: Read-only file system"):
        next_epoch(folder, lambda: 1.0)


def test_a_second_daemon_on_one_folder_is_told_who_holds_it(folder: Path) -> None:
    with (
        locked(folder),
        pytest.raises(
            IdentityError, match=rf"in use by swarmd with process id {os.getpid()}; stop it or name another --data-dir"
        ),
        locked(folder),
    ):
        pass
    with locked(folder):
        pass


@pytest.mark.slow
def test_the_lock_ends_with_its_process_however_it_ends(folder: Path) -> None:
    program = f"""
import sys, pathlib
from daemon.identity import locked
with locked(pathlib.Path({str(folder)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(IdentityError, match=f"process id {holder.pid}"), locked(folder):
            pass
        holder.kill()
        holder.wait()
    with locked(folder):
        pass


def test_a_folder_that_cannot_be_made_or_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for path, sentence in (
        (tmp_path / "file" / "data", "cannot be used: it is a link or no folder"),
        (tmp_path / "file", "cannot be used: it is a link or no folder"),
        (tmp_path / "link", "cannot be used: it is a link or no folder"),
        (Path("/proc/swarmd/data"), "the data folder /proc/swarmd/data cannot be used: "),
    ):
        with pytest.raises(IdentityError, match=sentence), locked(path):
            pass


def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The check is on the answer of the system, since root may write what its mode forbids.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(IdentityError, match=rf"the data folder {tmp_path}/data cannot be written"), locked(tmp_path / "data"):
        pass


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o702])
def test_a_folder_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(mode)
    with pytest.raises(IdentityError, match=rf"others may write the data folder {data}; .* chmod 700 {data}"), locked(data):
        pass


def test_a_folder_that_others_may_read_is_closed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o755)
    with locked(data):
        assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_the_runtime_folder_and_ours_above_it_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    runtime = tmp_path / "swarmd" / "0123456789ab"
    paths.prepare_runtime_dir(runtime)
    assert stat.S_IMODE(runtime.stat().st_mode) == stat.S_IMODE(runtime.parent.stat().st_mode) == 0o700
    runtime.parent.chmod(0o777)
    with pytest.raises(paths.UnsafeFolder, match="others may write the runtime folder"):
        paths.prepare_runtime_dir(runtime)
