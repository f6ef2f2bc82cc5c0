"""reasoning-gym's half in its own interpreter (`lines_server`): makes problems, scores answers.

A problem is a whole entry of a data set. It travels as JSON; tuples, which some scorers compare, are kept.
"""

import dataclasses
import difflib
import functools
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any, cast

Json = dict[str, Any]
Functions = dict[str, Callable[..., Any]]


def load() -> tuple[Functions, dict[str, str]]:
    """The functions `names`, `check`, `problem` and `score`, and the package's version."""
    factory: Any = importlib.import_module("reasoning_gym.factory")
    importlib.import_module("reasoning_gym")  # registers every data set

    def check(dataset: str, settings: Json, difficulty: int | None) -> None:
        """Raise ValueError with one sentence where no such data set can be made."""
        if dataset not in factory.DATASETS:
            close = difflib.get_close_matches(dataset, cast(list[str], [*factory.DATASETS]), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {len(factory.DATASETS)}"
            raise ValueError(f"there is no data set {dataset!r}: {hint}")
        known = [field.name for field in dataclasses.fields(factory.DATASETS[dataset][1])]
        for key in settings:
            if key not in known or key in ("size", "seed"):
                raise ValueError(
                    f"settings.{dataset}: unknown key {key!r}; known here are {', '.join(known)}"
                )
        if difficulty is not None and dataset not in factory.CURRICULA:
            raise ValueError(f"data set {dataset!r} has no levels: leave out difficulty")
        make(dataset, json.dumps(settings), difficulty, 0)

    def make(dataset: str, settings: str, difficulty: int | None, seed: int) -> Any:
        values = json.loads(settings)
        if difficulty is not None:
            values = {**_level(factory.create_curriculum(dataset), difficulty - 1), **values}
        if dataset == "composite":
            specification: Any = importlib.import_module("reasoning_gym.composite").DatasetSpec
            parts: list[Json] = [
                {"weight": 1, "config": {}, **part} for part in values.get("datasets", [])
            ]
            values["datasets"] = [specification(**part) for part in parts]
        return factory.create_dataset(dataset, **values, size=1, seed=seed)

    scorer = functools.lru_cache(256)(functools.partial(make, seed=0))

    def problem(dataset: str, settings: Json, difficulty: int | None, seed: int) -> Any:
        return pack(make(dataset, json.dumps(settings), difficulty, seed)[0])

    def score(
        dataset: str, settings: Json, difficulty: int | None, entry: Any, answer: str
    ) -> float:
        judge = scorer(dataset, json.dumps(settings), difficulty)
        problem = unpack(entry)
        try:
            found = judge.score_answer(answer, problem)
        except (
            Exception
        ) as error:  # it read what a policy wrote: no right answer, and no fault of ours
            print(f"{dataset}: its scorer stumbled over an answer: {error!r}", file=sys.stderr)
            return 0.0
        return float(found)  # what is no number is the package's fault

    version = importlib.metadata.version("reasoning-gym")
    methods = {"check": check, "problem": problem, "score": score}
    return {**methods, "names": lambda: sorted(factory.DATASETS)}, {"reasoning-gym": version}


def _level(curriculum: Any, level: int) -> Json:
    """The settings of a level: every attribute at it, or at the highest one that is allowed.

    Where the data set accepts none, as when a range begins below what it allows, the level's settings with
    one attribute's beginning, or the whole attribute, as the data set has it by default.
    """
    for repaired in (False, True):
        for lower in range(level, -1, -1):
            for attribute in curriculum.attributes.values():
                curriculum.set_attr_level(attribute.name, min(lower, len(attribute.levels) - 1))
            try:
                config = curriculum.generate_configuration()
            except (AssertionError, ValueError):  # some check themselves when they are made
                continue
            for one in _repairs(curriculum, config) if repaired else (config,):
                if _accepted(one):
                    found = cast(Json, vars(one))
                    return {k: v for k, v in found.items() if k not in ("size", "seed")}
    raise ValueError(f"curriculum {curriculum.name!r} has no level that its data set accepts")


def _accepted(config: Any) -> bool:
    try:
        if hasattr(config, "validate"):
            config.validate()
    except (AssertionError, ValueError):
        return False
    return True


def _repairs(curriculum: Any, config: Any) -> Iterable[Any]:
    default = {
        one.name: one.default
        for one in dataclasses.fields(config)
        if one.default is not dataclasses.MISSING
    }
    for whole in (False, True):
        for attribute in curriculum.attributes.values():
            low, high = (
                getattr(attribute, f"{end}_field_name", None) for end in ("lower", "upper")
            )
            names = [name for name in ((low, high) if whole else (low,)) if name in default]
            if names:
                yield dataclasses.replace(config, **{name: default[name] for name in names})


def pack(value: object) -> object:
    """Turn a value into JSON, with what JSON has no word for marked."""
    if isinstance(value, tuple):
        return {"()": _packed(cast(tuple[object, ...], value))}
    if isinstance(value, list):
        return _packed(cast(list[object], value))
    if isinstance(value, dict):
        items = cast(dict[object, object], value).items()
        if all(isinstance(key, str) for key, _ in items):
            return {key: pack(one) for key, one in items}
        return {"{}": [[pack(key), pack(one)] for key, one in items]}
    if isinstance(value, set | frozenset):
        return {"set": _packed(sorted(cast(set[Any], value)))}
    return value


def _packed(values: Iterable[object]) -> list[object]:
    return [pack(one) for one in values]


def unpack(value: object) -> Any:
    """Return the value that `pack` was given."""
    if isinstance(value, list):
        return [unpack(one) for one in cast(list[object], value)]
    if not isinstance(value, dict):
        return value
    entry = cast(dict[str, object], value)
    mark, held = next(iter(entry.items())) if len(entry) == 1 else ("", None)
    if isinstance(held, list):
        values = [unpack(one) for one in cast(list[object], held)]
        if mark == "()":
            return tuple(values)
        if mark == "set":
            return set(values)
        if mark == "{}":
            return dict(values)
    return {key: unpack(one) for key, one in entry.items()}
