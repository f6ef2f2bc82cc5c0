"""A generated task as plain data: the world's rows, the request, the rubric, and the chain that solves it.

`GeneratedTask` is what the generator makes, a pack holds, and an environment plays. It says everything that
the world needs but the domain, which it names. Rows are kept as lists of values, in the order of the entity's
fields."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field as Bounds

from envs.env import EnvConfig
from envs.generated.books import Rows
from envs.generated.chain import Step
from envs.generated.domain import Domain
from envs.generated.expression import Value
from envs.generated.rubric import Rubric
from envs.generated.world import World


class Difficulty(EnvConfig):
    """Dimensions of difficulty, each measured and each a setting. chain: acts that are asked for. branching:
    the chance that an act is on other rows than those before. distractors: rows, times as many as the domain
    asks for. lookups: the share of ids that are not told. hidden: facts that the user says only when asked.
    noise: calls that find a tool busy. question: the chance that the task ends with one. tools: how many of
    the domain's tools the task offers, those that its chain needs and others; 0 for all."""

    chain: int = Bounds(default=3, ge=1, le=12)
    branching: float = Bounds(default=0.4, ge=0, le=1)
    distractors: float = Bounds(default=1.0, ge=0.25, le=8)
    lookups: float = Bounds(default=0.9, ge=0, le=1)
    hidden: int = Bounds(default=0, ge=0, le=3)
    noise: int = Bounds(default=0, ge=0, le=4)
    question: float = Bounds(default=0.4, ge=0, le=1)
    tools: int = Bounds(default=0, ge=0, le=200)


@dataclass(frozen=True)
class GeneratedTask:
    """One task. seed: what it was made from. structure: a hash of its chain without names and values. answer:
    the step and the field that the final answer is taken from, () where the answer is a word of one's own.
    hard: True if the planner did not find a solution of its own. offers: the tools that it offers, () for all
    that its domain has."""

    domain: str
    seed: str
    rows: Rows
    system: str
    request: str
    facts: dict[str, Value]
    faults: dict[str, int]
    rubric: Rubric
    steps: tuple[Step, ...]
    answer: tuple[int, str] | tuple[()] = ()
    measures: dict[str, float] = field(default_factory=dict[str, float])
    structure: str = ""
    hard: bool = False
    offers: tuple[str, ...] = ()

    def world(self, domain: Domain) -> World:
        """Open a fresh world of this task, with the tools that it offers."""
        if self.offers:
            domain = replace(domain, tools={name: domain.tools[name] for name in self.offers})
        return World(domain, self.rows, faults=self.faults, facts=self.facts)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = {name: [list(row.values()) for row in some] for name, some in self.rows.items()}
        return {
            "domain": self.domain,
            "seed": self.seed,
            "rows": rows,
            "system": self.system,
            "request": self.request,
            "facts": self.facts,
            "faults": self.faults,
            "rubric": self.rubric.as_json(),
            "steps": [step.as_json() for step in self.steps],
            "answer": list(self.answer),
            "measures": self.measures,
            "structure": self.structure,
            "hard": self.hard,
            "offers": list(self.offers),
        }

    @classmethod
    def of_json(cls, domain: Domain, data: dict[str, Any]) -> "GeneratedTask":
        """Undo `as_json`."""
        names = {name: ("id", *entity.fields) for name, entity in domain.entities.items()}
        rows: Rows = {
            name: [dict(zip(names[name], row, strict=True)) for row in some]
            for name, some in data["rows"].items()
        }
        known: dict[str, Any] = {
            **data,
            "rows": rows,
            "rubric": Rubric.of_json(data["rubric"]),
            "steps": tuple(Step.of_json(one) for one in data["steps"]),
            "answer": tuple(data["answer"]),
            "offers": tuple(data.get("offers", ())),
        }
        return cls(**known)


def shape_of(steps: tuple[Step, ...]) -> str:
    """Hash what a chain calls, in order, without the values: tasks of one shape differ in rows only."""
    told = [[step.tool, sorted(step.args), sorted(step.pick)] for step in steps]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]
