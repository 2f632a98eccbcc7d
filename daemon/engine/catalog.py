"""The models that come with swarmd: which there are, where their files lie, whether a file is the one that was shipped."""

import hashlib
from pathlib import Path
from typing import Annotated

import msgspec

import daemon
from daemon.engine.interface import EngineError
from protocol.wire.ids import is_model_name

DEFAULT_MODEL = "tiny-all"
_MAX_CATALOG_BYTES = 1 << 20


class ShippedModel(msgspec.Struct, frozen=True):
    """One entry of catalog.json."""

    name: str
    file: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, msgspec.Meta(ge=1)]
    judge_prompt: str
    context_tokens: Annotated[int, msgspec.Meta(ge=1)]
    skills: tuple[str, ...] = ()


def models_folder() -> Path:
    """`models` beside the packages: at the root of the source tree, or inside the wheel."""
    return Path(daemon.__file__).parent.parent / "models"


def shipped_models(folder: Path | None = None) -> tuple[ShippedModel, ...]:
    """What the catalog lists; raises EngineError where it is missing or damaged."""
    try:
        raw = ((folder or models_folder()) / "catalog.json").read_bytes()
    except OSError as error:
        raise EngineError(f"the catalog of shipped models cannot be read: {error.strerror}") from None
    try:
        listed = msgspec.json.decode(raw[:_MAX_CATALOG_BYTES], type=tuple[ShippedModel, ...])
    except (msgspec.DecodeError, RecursionError):
        raise EngineError("the catalog of shipped models is damaged") from None
    if not all(is_model_name(model.name) for model in listed):
        raise EngineError("the catalog of shipped models holds a malformed name")
    return listed


def shipped_model(name: str = DEFAULT_MODEL, folder: Path | None = None) -> ShippedModel:
    """The entry called `name`; raises EngineError naming those that exist."""
    listed = shipped_models(folder)
    for model in listed:
        if model.name == name:
            return model
    raise EngineError(f"no model called {name!r} is shipped; there are: {', '.join(model.name for model in listed) or 'none'}")


def verified_file(model: ShippedModel, folder: Path | None = None) -> Path:
    """The model's file, once its size and SHA-256 are those of the catalog; raises EngineError. Hashing takes 2 ms."""
    path = (folder or models_folder()) / model.file
    try:
        with path.open("rb") as file:
            right = path.stat().st_size == model.bytes and hashlib.file_digest(file, "sha256").hexdigest() == model.sha256
    except OSError as error:
        raise EngineError(f"the shipped model {model.name} cannot be read: {error.strerror}") from None
    if not right:
        raise EngineError(f"the file of the shipped model {model.name} is not the one that was shipped")
    return path
