"""Finds an environment class: by entry point (`dorado.envs`), as `module:Name`, or as `file.py:Name`.

A file is a module of its own, called after its path, so that two files of one name do not clash and what
it defines can be pickled. Its folder is not importable: an environment of several files is a package.
"""

import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from envs.declaration import mistake_of
from envs.entry_point import TwoRegister, entry_point, registered
from envs.env import Env, EnvConfig
from envs.message import JsonObject
from envs.settings import BadSettings, read_settings
from envs.text import told

GROUP = "dorado.envs"


class UnknownEnv(ValueError):
    """No environment of that name; the message says which there are."""


def env_names() -> list[str]:
    """The names registered under the entry point group `dorado.envs`."""
    return registered(GROUP)


def split_file(name: str) -> tuple[Path, str] | None:
    """`worlds/doubling.py:Doubling` as its file and its class; None for a name of another kind."""
    path, _, attribute = name.rpartition(":")
    return (Path(path), attribute) if path.endswith(".py") else None


def anchored(name: str, folder: str | Path) -> str:
    """The name with its file, if it has one, as an absolute path: relative ones are seen from `folder`."""
    file = split_file(name)
    if file is None:
        return name
    return f"{os.path.abspath(Path(folder) / file[0])}:{file[1]}"


def find_env(name: str) -> type[Env]:
    """The environment class called `name` (entry point), at `module:Name`, or at `file.py:Name`.

    Raises UnknownEnv with one sentence.
    """
    file = split_file(name)
    if file is not None:
        found = _from_file(name, Path(os.path.abspath(file[0])), file[1])
    else:
        found = _from_module(name) if ":" in name else _from_package(name)
    if not (isinstance(found, type) and issubclass(found, Env)):
        raise UnknownEnv(f"environment {name!r} is not a subclass of envs.env.Env")
    return found


def find_playable(name: str) -> type[Env]:
    """`find_env`, for a class that is to be played now. Raises UnknownEnv for one that cannot be."""
    found = find_env(name)
    if mistake := mistake_of(found):
        raise UnknownEnv(f"environment {name!r}: {mistake}")
    return found


def settings_of(env_class: type[Env], values: JsonObject) -> EnvConfig:
    """An environment's own settings. Raises BadSettings with one sentence."""
    return read_settings(env_class.config_type, values)


def make_env(name: str, values: JsonObject) -> Env:
    """Build the environment called `name` with these settings. Raises UnknownEnv, BadSettings."""
    env_class = find_env(name)
    return made(env_class, settings_of(env_class, values))


def made(env_class: type[Env], settings: EnvConfig) -> Env:
    """A fresh instance. Raises BadSettings where its `__init__` raises or leaves the base's out."""
    try:
        env = env_class(settings)
    except (Exception, SystemExit) as error:
        raise BadSettings(f"it cannot be made: {told(error)}") from error
    if not hasattr(env, "config") or not hasattr(env, "notes"):
        raise BadSettings(
            "it cannot be made: its __init__() has to begin with super().__init__(config)"
        )
    return env


def _from_module(name: str) -> object:
    module_name, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except BaseException as error:  # a plugin can fail in any way, and exit
        raise UnknownEnv(f"environment {name!r} cannot be imported: {told(error)}") from None


def _from_package(name: str) -> object:
    try:
        point = entry_point(GROUP, name)
    except TwoRegister as error:
        raise UnknownEnv(f"environment {error}") from None
    if point is None:
        close = difflib.get_close_matches(name, env_names(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UnknownEnv(
            f"environment {name!r} does not exist: {hint}"
            f"installed are {', '.join(env_names())}; or give module:Name or file.py:Name"
        )
    try:
        return point.load()
    except BaseException as error:  # a plugin can fail in any way, and exit
        raise UnknownEnv(f"environment {name!r} cannot be imported: {told(error)}") from None


def _from_file(name: str, file: Path, attribute: str) -> object:
    if not file.is_file():
        raise UnknownEnv(f"environment {name!r}: there is no file {file}")
    try:
        module = _load(file)
    except BaseException as error:  # a plugin can fail in any way, and exit
        raise UnknownEnv(
            f"environment {name!r}: {file} cannot be imported: {told(error)}"
        ) from None
    if not hasattr(module, attribute):
        own = [
            value.__name__
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, Env)
            and value.__module__ == module.__name__
        ]
        there = f"its environments are {', '.join(own)}" if own else "it defines no environment"
        raise UnknownEnv(f"environment {name!r}: {file} has no class {attribute!r}; {there}")
    return getattr(module, attribute)


def _load(file: Path) -> ModuleType:
    """The module of a file, imported once per process."""
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:12]
    module_name = f"dorado_env_{file.stem}_{digest}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    # Before it runs: pickle and dataclasses look a class up in the module it says it is of.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module
