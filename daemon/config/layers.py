"""Where values come from: command line over environment over file over default, each typed alike and remembered by its origin."""

import difflib
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
import platformdirs

from daemon.config.checks import problems
from daemon.config.fields import Config, Section
from daemon.paths import read_file
from swarmd import places

MAX_FILE_BYTES = 256 << 10
"""A real configuration is below 10 KiB; anything near this is the wrong file."""

NOT_SETTINGS = frozenset({"SWARMD_CONFIG", "SWARMD_SOCKET", "SWARMD_MESH"})
"""Variables of ours that are not settings."""

BAD_NAME = "a mesh's name is 1 to 32 lower-case letters, digits and dashes, and does not begin with a dash"
MESH_PORTS, MESH_PORTS_COUNT = 20_000, 10_000
"""A named mesh listens on one of these ports, by its name: below the ports that Linux gives to outgoing connections."""

PATH_KEYS = frozenset({"data_dir", "runtime_dir", "api.key_file", "engine.key_file", "engine.vllm_executable"})
SECRET_WORDS = ("key", "token", "secret", "password")


class ConfigError(Exception):
    """The configuration cannot be used. The message is one sentence that names the setting and where its value came from."""


class Origin(NamedTuple):
    """Where a value came from: "command line", "environment SWARMD_X", "file PATH" or "default"."""

    text: str
    folder: Path
    """What relative paths are relative to."""


class Loaded(NamedTuple):
    """A checked configuration, the origin of each of its settings by dotted name, and sentences worth a warning."""

    config: Config
    origins: Mapping[str, str]
    warnings: tuple[str, ...] = ()


class Base(NamedTuple):
    """What stands in place of the defaults.

    `mesh` names one of several daemons of this user: it has a data folder, a configuration file and ports of its own, so that
    nothing of one mesh gets into another. `presets` are a command's.
    """

    mesh: str | None = None
    presets: Mapping[str, object] = MappingProxyType({})


class _Layer(NamedTuple):
    origin: Origin
    values: Mapping[str, object]


def settings() -> dict[str, Any]:
    """Every setting's annotated type by dotted name ("engine.model"), in the order in which they are shown."""
    return dict(_walk(Config, ""))


def default_config_file() -> Path:
    """The file read where nobody names one; it need not exist."""
    return platformdirs.user_config_path("swarmd") / "config.toml"


def default_data_dir() -> Path:
    """The data folder where nobody names one."""
    return platformdirs.user_data_path("swarmd")


def load(
    flags: Mapping[str, object] = MappingProxyType({}),
    config_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    check: bool = True,
    assignments: Sequence[str] = (),
    base: "Base | None" = None,
) -> Loaded:
    """Read, merge and check the configuration; raises ConfigError.

    `flags` are values from the command line by dotted name; None means not given; `assignments` are "name=value" texts from it,
    each after the flags; `base` is what stands in place of the defaults. `check=False` skips what needs more than the
    values themselves (files, multiaddrs): enough to find a running daemon's socket.
    """
    environ = os.environ if environ is None else environ
    mesh, presets = base or Base()
    known = settings()
    here = Path.cwd()
    from_environment, warnings = _environment_layers(environ, known, here)
    layers = [_Layer(Origin("command line", here), {name: value for name, value in flags.items() if value is not None})]
    layers += _assigned(assignments, known, here)
    layers += [] if mesh is None else [_Layer(Origin("command line", here), {"data_dir": str(_mesh_folder(mesh))})]
    layers += from_environment
    named = config_file or (Path(environ["SWARMD_CONFIG"]) if environ.get("SWARMD_CONFIG") else None)
    layers += _file_layer(named, known, mesh)
    layers += _mesh_layer(mesh, here)
    layers += [_Layer(Origin("preset of the command", here), presets)] if presets else []

    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for origin, given in layers:
        for name, value in given.items():
            if name not in known:
                raise ConfigError(f"{origin.text}: {_unknown(name, known)}")
            if name not in values:
                values[name] = _typed(name, value, known[name], origin)
                origins[name] = origin.text
    values.setdefault("data_dir", default_data_dir())
    values.setdefault("runtime_dir", _default_runtime_dir(Path(str(values["data_dir"]))))

    config = _build(values)
    origins = {name: origins.get(name, "default") for name in known}
    if check:
        for name, sentence in problems(config):
            raise ConfigError(f"{name} ({origins[name]}): {sentence}")
    return Loaded(config, origins, warnings)


def masked(loaded: Loaded) -> dict[str, dict[str, object]]:
    """Every setting as {"value", "origin"} by dotted name, fit for showing: what may be a secret is ***."""
    shown = {}
    for name in settings():
        value: object = loaded.config
        for part in name.split("."):
            value = getattr(value, part)
        if name == "engine.extra_args":
            value = _masked_arguments(loaded.config.engine.extra_args)
        shown[name] = {"value": msgspec.to_builtins(value, enc_hook=str), "origin": loaded.origins[name]}
    return shown


def _walk(section: type[Section], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, annotation in get_type_hints(section, include_extras=True).items():
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from _walk(annotation, f"{prefix}{name}.")
        elif not name.startswith("_"):
            yield prefix + name, annotation


def _assigned(assignments: Sequence[str], known: Mapping[str, Any], here: Path) -> Iterator[_Layer]:
    origin = Origin("command line", here)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"command line: {assignment[:100]!r} is not of the form NAME=VALUE")
        yield _Layer(origin, {name: _from_text(text, known[name]) if name in known else text})


def _environment_layers(environ: Mapping[str, str], known: Mapping[str, Any], here: Path) -> tuple[list[_Layer], tuple[str, ...]]:
    by_variable = {"SWARMD_" + name.upper().replace(".", "_"): name for name in known}
    layers, warnings = [], []
    for variable in sorted(environ):
        if variable in by_variable:
            name = by_variable[variable]
            layers.append(_Layer(Origin(f"environment {variable}", here), {name: _from_text(environ[variable], known[name])}))
        elif variable.startswith("SWARMD_") and variable not in NOT_SETTINGS:
            # No error: Kubernetes sets such variables for any service that is called swarmd.
            near = difflib.get_close_matches(variable, by_variable, 1, 0.5)
            warnings.append(f"{variable} is no setting" + (f"; the nearest is {near[0]}" if near else ""))
    return layers, tuple(warnings)


def _from_text(text: str, annotation: Any) -> object:
    """A variable's text in the form that TOML would give: lists are JSON or separated by commas."""
    plain = _plain(annotation)
    if get_origin(plain) is tuple:
        if text.lstrip().startswith("["):
            try:
                return json.loads(text)
            except ValueError:
                return text
        return [part.strip() for part in text.split(",") if part.strip()]
    if plain in (int, float, bool):
        try:
            return msgspec.convert(text, plain, strict=False)
        except msgspec.ValidationError:
            return text
    return text


def _mesh_folder(mesh: str) -> Path:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", mesh):
        raise ConfigError(f"--mesh: {BAD_NAME}")
    return default_data_dir() / "meshes" / mesh


def _mesh_layer(mesh: str | None, here: Path) -> list[_Layer]:
    """What a named mesh has in place of the defaults."""
    if mesh is None:
        return []
    port = MESH_PORTS + int.from_bytes(hashlib.sha256(mesh.encode()).digest()[:4], "big") % MESH_PORTS_COUNT
    values = {"listen": [f"/ip4/0.0.0.0/tcp/{port}"], "api.listen": "127.0.0.1:0"}
    return [_Layer(Origin(f"mesh {mesh}", here), values)]


def _file_layer(named: Path | None, known: Mapping[str, Any], mesh: str | None = None) -> list[_Layer]:
    usual = default_config_file() if mesh is None else default_config_file().parent / "meshes" / f"{mesh}.toml"
    path = (named or usual).absolute()
    try:
        text = _read_config_file(path)
    except FileNotFoundError:
        if named is None:
            return []
        raise ConfigError(f"the config file {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"the config file {path} cannot be read: {error.strerror}") from None
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the config file {path} is not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"the config file {path} is nested too deeply") from None
    origin = Origin(f"file {path}", path.parent)
    sections = {name.rpartition(".")[0] for name in known}
    return [_Layer(origin, dict(_flat(tables, "", sections, origin)))]


def _read_config_file(path: Path) -> str:
    # A link is followed and its target judged: dotfile tools and Kubernetes both put links here.
    info, raw = read_file(path, MAX_FILE_BYTES)
    if info.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"the config file {path} belongs to another user (uid {info.st_uid})")
    if info.st_mode & 0o022:
        raise ConfigError(f"others may write the config file {path}; run: chmod go-w {path}")
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"the config file {path} has more than {MAX_FILE_BYTES >> 10} KiB, so it is not a config file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"the config file {path} is not UTF-8 (byte {error.start})") from None


def _flat(table: Mapping[str, object], prefix: str, sections: set[str], origin: Origin) -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        name = prefix + key
        if name in sections and not isinstance(value, Mapping):
            raise ConfigError(f"{origin.text}: {name} is a group of settings; write [{name}] and its settings below")
        if isinstance(value, Mapping) and name in sections:
            yield from _flat(value, f"{name}.", sections, origin)
        else:
            yield name, value


def _unknown(name: str, known: Mapping[str, Any]) -> str:
    # The last part alone is compared too, so that a setting written in the wrong section still finds its name.
    key = name.rpartition(".")[2]
    near = difflib.get_close_matches(name, known, 1, 0.6) or [full for full in known if full.rpartition(".")[2] == key]
    return f"unknown setting {name[:100]!r}" + (f"; the nearest known one is {near[0]!r}" if near else "")


def _plain(annotation: Any) -> Any:
    return annotation.__origin__ if get_origin(annotation) is Annotated else annotation


def _typed(name: str, value: object, annotation: Any, origin: Origin) -> object:
    if isinstance(value, str | Path):
        value = str(value)
        if not value and annotation is Path:
            raise ConfigError(f"{origin.text}: {name}: expected a path, got nothing")
        if "\0" in value:
            raise ConfigError(f"{origin.text}: {name}: a zero character is not allowed")
        if value and (name in PATH_KEYS or (name == "engine.model" and value.endswith(".gguf"))):
            value = str(origin.folder / Path(value).expanduser())
    try:
        return Path(msgspec.convert(value, str)) if annotation is Path else msgspec.convert(value, annotation)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin.text}: {name}: expected {_expected(annotation, error)}, got {_shown(value)}") from None


def _expected(annotation: Any, error: msgspec.ValidationError) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(get_args(annotation))
    sentence = str(error).replace("`", "").removeprefix("Expected ").partition(", got ")[0].partition(" - at ")[0]
    return f"a list of {sentence}" if get_origin(_plain(annotation)) is tuple and sentence != "array" else sentence


def _build(values: Mapping[str, object]) -> Config:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[key] = value
    hints = get_type_hints(Config)
    return Config(**{key: hints[key](**value) if isinstance(value, dict) else value for key, value in nested.items()})


def _default_runtime_dir(data_dir: Path) -> Path:
    return places.runtime_dir(None if os.path.realpath(data_dir) == os.path.realpath(default_data_dir()) else data_dir)


def _masked_arguments(arguments: tuple[str, ...]) -> list[str]:
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        option, equals, _ = argument.partition("=")
        secret = option.startswith("-") and any(word in option.lower() for word in SECRET_WORDS)
        shown.append("***" if hide_next else f"{option}=***" if secret and equals else argument)
        hide_next = secret and not equals
    return shown


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
