"""Reads settings: a TOML file, changed by `--a.b value`, as one frozen tree.

Every mistake is a ConfigError whose message is one sentence: file, key, what is wrong, what would be
right.
"""

import difflib
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from envs.text import encodable
from rl.config_error import ConfigError
from trainer.config import LossConfig

Settings = TypeVar("Settings", bound=BaseModel)


def read_config(
    path: str | Path,
    overrides: Sequence[str],
    kind: type[Settings],
    anchor: Callable[[dict[str, object], Path], None] = lambda values, folder: None,
) -> Settings:
    """Read settings of this kind from a TOML file and overrides (`["--steps", "9", "--seed=1"]`).

    `anchor(values, folder)` makes what the file has relative to its folder absolute. Raises ConfigError.
    """
    values = read_toml(path)
    anchor(values, Path(path).parent)
    given: set[str] = set()
    for key, text in _pairs(overrides):
        given.add(key)
        _set(values, key.split("."), _value(text), key)
    return build(values, f"config {path}", given, kind)


def read_origins(path: str | Path, overrides: Sequence[str]) -> dict[str, str]:
    """Where each value that is no default comes from, e.g. `{"steps": "--steps", "env.0.id": "file a.toml"}`.

    Of the same arguments as `read_config`, which has found nothing wrong with them.
    """
    values = read_toml(path)
    origins = dict.fromkeys(flat(values), f"file {path}")
    for key, text in _pairs(overrides):
        _set(values, key.split("."), _value(text), key)
        given = {k for k in flat(values) if k == key or k.startswith(f"{key}.")}
        origins |= dict.fromkeys(given, f"--{key}")
    return {key: origin for key, origin in origins.items() if key in flat(values)}


def flat(values: Mapping[str, object]) -> dict[str, object]:
    """Nested tables as one, by dotted keys, e.g. `{"env": [{"id": "x"}]}` as `{"env.0.id": "x"}`."""
    found: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, list) and any(isinstance(one, dict) for one in value):
            value = {str(index): one for index, one in enumerate(value)}
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": one for inner, one in flat(value).items()}
        else:
            found[key] = value
    return found


def own_configs() -> dict[str, Path]:
    """Find the configurations that Dorado brings, by names such as sim/dora_testbed.toml."""
    clone = Path(__file__).parent.parent
    if (clone / "pyproject.toml").is_file():
        folder = clone / "configs"
        return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.toml")}
    try:
        installed = files("dorado-rl") or []
    except PackageNotFoundError:
        return {}
    found = ((file.as_posix().partition("share/dorado/configs/")[2], file) for file in installed)
    return {name: Path(str(file.locate())).resolve() for name, file in found if name}


def find_config(path: Path) -> Path:
    """The file itself, or, where there is none, the one of Dorado's own that has this name."""
    if path.exists():
        return path
    return own_configs().get(path.as_posix().removeprefix("configs/"), path)


def read_toml(path: str | Path) -> dict[str, object]:
    """A TOML file as it is. Raises ConfigError."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        own = own_configs()
        near = difflib.get_close_matches(Path(path).name, own, n=1, cutoff=0.8)
        hint = f"; Dorado brings {own[near[0]]}" if near else ""
        raise ConfigError(f"config {path}: the file does not exist{hint}") from None
    except OSError as error:
        raise ConfigError(f"config {path}: the file cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"config {path}: it is nested too deeply") from None
    except ValueError as error:  # no TOML, no UTF-8, or a number of thousands of digits
        said = str(error).partition("; use sys.")[0]
        raise ConfigError(f"config {path}: not valid TOML: {said}") from None


def build(
    values: dict[str, object], file: str, given: Collection[str], kind: type[Settings]
) -> Settings:
    """Settings of this kind; errors name `file`, or the command line for keys in `given`.

    Raises ConfigError.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        source = "command line" if key in given else file
        where = f"{source}: {key}" if key else source
        raise ConfigError(f"{where}: {_sentence(first, kind)}") from None


def _sentence(error: ErrorDetails, kind: type[BaseModel]) -> str:
    problem, given = error["type"], error["input"]
    if problem == "extra_forbidden":
        *parents, wrong = error["loc"]
        known = list(_fields_at(parents, kind))
        close = difflib.get_close_matches(str(wrong), known, n=1)
        if close:
            return f"unknown key, did you mean {close[0]!r}?"
        return f"unknown key; known here are {', '.join(known)}"
    if problem == "missing":
        return "this key is required"
    if problem == "value_error":
        return str(error.get("ctx", {}).get("error"))
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, got {given!r}"


def _fields_at(location: Sequence[str | int], kind: type[BaseModel]) -> Iterator[str]:
    """Names of the fields of the section at a location such as ("env", 0, "deadlines")."""
    model = kind
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _section_of(model.model_fields[part].annotation) or model
        elif isinstance(part, str) and model is LossConfig:
            model = LossConfig.sections().get(part, model)
    yield from model.model_fields
    if model is LossConfig:
        yield from LossConfig.sections()


def _section_of(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _section_of(argument)
        if found is not None:
            return found
    return None


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = list(overrides)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise ConfigError(f"command line: {flag!r} is no override; they look like --steps 10")
        key, equals, text = flag[2:].partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"command line: --{key} needs a value")
            text = rest.pop(0)
        if encodable(flag + text) != flag + text:
            raise ConfigError(f"command line: {encodable(flag)}: {encodable(text)!r} is not UTF-8")
        yield key.replace("-", "_"), text


def _value(text: str) -> object:
    """A TOML value where the text is one, else the text itself."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except (ValueError, RecursionError):  # no TOML, or too long or too deep for it
        return text


def _set(values: dict[str, object], keys: list[str], value: object, full: str) -> None:
    target: dict[str, object] | list[object] = values
    for key in keys[:-1]:
        if not isinstance(target, dict):
            if not key.isdecimal() or int(key) >= len(target):
                raise ConfigError(f"command line: --{full}: there is no entry {key!r}")
            inner = target[int(key)]
        else:
            inner = target.setdefault(key, {})
        if not isinstance(inner, dict | list):
            raise ConfigError(f"command line: --{full}: {key!r} is no section")
        target = inner
    if not isinstance(target, dict):
        raise ConfigError(f"command line: --{full} has to name a key of one entry")
    target[keys[-1]] = value
