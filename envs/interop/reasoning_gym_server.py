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
from collections.abc import Callable
from typing import Any

Functions = dict[str, Callable[..., Any]]


def load() -> tuple[Functions, dict[str, str]]:
    """The functions `names`, `check`, `problem` and `score`, and the package's version."""
    factory: Any = importlib.import_module("reasoning_gym.factory")
    importlib.import_module("reasoning_gym")  # registers every data set

    def check(dataset: str, settings: dict[str, Any], difficulty: int | None) -> None:
        """Raise ValueError with one sentence where no such data set can be made."""
        if dataset not in factory.DATASETS:
            close = difflib.get_close_matches(dataset, factory.DATASETS, n=1)
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
            parts = [{"weight": 1, "config": {}, **part} for part in values.get("datasets", [])]
            values["datasets"] = [specification(**part) for part in parts]
        return factory.create_dataset(dataset, **values, size=1, seed=seed)

    scorer = functools.lru_cache(256)(functools.partial(make, seed=0))

    def problem(dataset: str, settings: dict[str, Any], difficulty: int | None, seed: int) -> Any:
        return pack(make(dataset, json.dumps(settings), difficulty, seed)[0])

    def score(
        dataset: str, settings: dict[str, Any], difficulty: int | None, entry: Any, answer: str
    ) -> float:
        judge = scorer(dataset, json.dumps(settings), difficulty)
        problem = unpack(entry)
        try:
            return float(judge.score_answer(answer, problem))
        except (
            Exception
        ) as error:  # it read what a policy wrote: no right answer, and no fault of ours
            print(f"{dataset}: its scorer stumbled over an answer: {error!r}", file=sys.stderr)
            return 0.0

    version = importlib.metadata.version("reasoning-gym")
    methods = {"check": check, "problem": problem, "score": score}
    return {**methods, "names": lambda: sorted(factory.DATASETS)}, {"reasoning-gym": version}


def _level(curriculum: Any, level: int) -> dict[str, Any]:
    """The settings of a level: every attribute at it, or at the highest one that is allowed."""
    for lower in range(level, -1, -1):
        for attribute in curriculum.attributes.values():
            curriculum.set_attr_level(attribute.name, min(lower, len(attribute.levels) - 1))
        config = curriculum.generate_configuration()
        try:
            config.validate()
        except AssertionError:
            continue
        return {k: v for k, v in vars(config).items() if k not in ("size", "seed")}
    raise ValueError(f"curriculum {curriculum.name!r} has no level that its data set accepts")


def pack(value: Any) -> Any:
    """As JSON, with what JSON has no word for marked."""
    if isinstance(value, tuple):
        return {"()": [pack(one) for one in value]}
    if isinstance(value, list):
        return [pack(one) for one in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: pack(one) for key, one in value.items()}
        return {"{}": [[pack(key), pack(one)] for key, one in value.items()]}
    if isinstance(value, set | frozenset):
        return {"set": [pack(one) for one in sorted(value)]}
    return value


def unpack(value: Any) -> Any:
    """Return the value that `pack` was given."""
    if isinstance(value, list):
        return [unpack(one) for one in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"()": list(items)} if len(value) == 1:
            return tuple(unpack(one) for one in items)
        case {"set": list(items)} if len(value) == 1:
            return {unpack(one) for one in items}
        case {"{}": list(pairs)} if len(value) == 1:
            return {unpack(key): unpack(one) for key, one in pairs}
    return {key: unpack(one) for key, one in value.items()}
