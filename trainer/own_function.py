"""Functions of the user's own, by `module:function` or `file.py:function`: a loss, an advantage, a
correction.

A name with a colon is one of them wherever the configuration takes a built-in's name. A file is imported
under a name made of its path, and its folder is not importable.
"""

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


# Metrics that an update has of every loss.
OURS = frozenset(("loss/loss", "loss/entropy", "loss/kl_reference"))


class BadFunction(ValueError):
    """A function of the user's own that cannot be used; the message is one sentence, without the setting's
    key."""


def is_own(name: str) -> bool:
    """True for `module:function` and `file.py:function`, False for a built-in's name."""
    return ":" in name


def anchored(name: str, folder: str | Path) -> str:
    """The name with its file, if it has one, as an absolute path: relative ones are seen from `folder`."""
    place, _, attribute = name.rpartition(":")
    if not place.endswith(".py"):
        return name
    return f"{os.path.abspath(Path(folder) / place)}:{attribute}"


@cache
def find_function(name: str) -> Callable[..., Any]:
    """The function called so. Raises BadFunction."""
    place, _, attribute = name.rpartition(":")
    module = _module(name)
    found = getattr(module, attribute, None)
    if found is None:
        own = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        there = f"its functions are {', '.join(own)}" if own else "it defines no function"
        raise BadFunction(f"{name!r}: {place} has no {attribute!r}; {there}")
    if not callable(found):
        raise BadFunction(f"{name!r} is of type {type(found).__name__}; it has to be a function")
    return found


def call_own(name: str, *values: object, **settings: object) -> Any:
    """Call the function in the middle of a run; returns what it gives. Raises BadFunction where it fails."""
    try:
        return find_function(name)(*values, **settings)
    except BadFunction:
        raise
    except (Exception, SystemExit) as error:  # a user's function can fail in any way, and exit
        raise BadFunction(f"{name!r} raised {one_line(error)}") from error


def source_of(name: str) -> tuple[str, str]:
    """Where a function stands and the text of its file; "" where there is no text. Raises BadFunction.

    A function that the named file has from another one is of that one; of any other callable it is the named
    file.
    """
    found = find_function(name)
    module = (inspect.getmodule(found) if inspect.isfunction(found) else None) or _module(name)
    path = getattr(module, "__file__", None) or ""
    try:
        return path, Path(path).read_text(encoding="utf-8") if path else ""
    except (OSError, UnicodeDecodeError):
        return path, ""


def one_line(error: BaseException) -> str:
    """An exception in one line: its class and what it says."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def split_counts(name: str, found: object) -> "tuple[Tensor, dict[str, Tensor]]":
    """A tensor, or a tensor and its counts for the metrics, as a pair; a count whose name has no slash is
    `loss/NAME`. Raises BadFunction for all else."""
    import torch

    tensor, counts = found if isinstance(found, tuple) and len(found) == 2 else (found, {})
    if not isinstance(tensor, torch.Tensor):
        raise BadFunction(
            f"{name!r} returned {type(tensor).__name__}; it has to return a tensor, or a tensor and a dict "
            "of counts"
        )
    if not isinstance(counts, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) and not value.ndim
        for key, value in counts.items()
    ):
        raise BadFunction(f"{name!r} returned counts that are no dict of names and scalar tensors")
    named = {key if "/" in key else f"loss/{key}": value for key, value in counts.items()}
    if taken := sorted(OURS & named.keys()):
        raise BadFunction(
            f"{name!r} returned a count called {taken[0]!r}, which is a metric of Dorado's: give it another "
            "name"
        )
    return tensor, named


def _module(name: str) -> ModuleType:
    place = name.rpartition(":")[0]
    try:
        return _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # a user's module can fail in any way, and exit
        raise BadFunction(f"{name!r} cannot be imported: {one_line(error)}") from None


def _from_file(file: Path) -> ModuleType:
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:12]
    name = f"dorado_own_{file.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
