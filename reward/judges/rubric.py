"""Rubric: weighted criteria, each answered yes, no or cannot tell, and their weighted share as the reward.

Rubrics as Rewards (arXiv 2507.17746). Criteria are of the judge's settings, or of the task (`column`). Their
order is another one for each answer, so that no place in the list is favoured; `max_words` takes from the
reward of a longer answer.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import cast

from pydantic import Field, model_validator

from envs.chat_model import ChatModel
from envs.env import EnvConfig, Task
from envs.prompt import marked
from envs.rows import cell
from envs.settings import BadSettings, read_settings
from envs.text import shown
from reward.judges.prompt import find_prompt
from reward.judges.shown import answer_of, question_of, words
from reward.judges.verdict import one_of, record, verdict
from reward.model_judge import JudgeSettings, model_judge
from rollout.trajectory import Judgement, Trajectory

OWN_METRICS = frozenset(("cannot_tell", "words", "disagreement"))
YES, NO, UNSURE = "yes", "no", "cannot tell"


class Criterion(EnvConfig):
    """One yes-or-no question. weight: below 0 for what an answer should not do. name: of a task's own
    criterion its number where it has none."""

    name: str = ""
    text: str = Field(min_length=1)
    weight: float = Field(default=1.0, allow_inf_nan=False)


class RubricSettings(JudgeSettings):
    """criteria: of every task. column: of the task's data, a list of such criteria or of sentences.

    unsure: what "cannot tell" counts, 0 as no to 1 as yes. reasons: ask for one before each verdict.
    max_words: from there on a longer answer loses reward, all of it at twice as many (0: none does).
    """

    criteria: tuple[Criterion, ...] = ()
    column: str = ""
    unsure: float = Field(default=0.0, ge=0, le=1)
    reasons: bool = True
    max_words: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _some(self) -> "RubricSettings":
        if not self.criteria and not self.column:
            raise ValueError(
                'give criteria = [{ name = "polite", text = "The answer is polite." }], or the column of '
                "the task's data that has them"
            )
        if not all(one.name for one in self.criteria):
            raise ValueError("a criterion has no name: give it one, for its metric")
        _check_names([one.name for one in self.criteria])
        if self.criteria and not self.column and not any(one.weight for one in self.criteria):
            raise ValueError("every criterion has weight 0: give one a weight")
        return self

    def check_task(self, task: Task) -> None:
        """Raise ValueError for a task whose criteria cannot be read."""
        criteria_of(task, self)


def _check_names(names: Sequence[str]) -> None:
    """Raise ValueError for a name that is there twice, or is a metric's of every rubric."""
    if taken := sorted(OWN_METRICS.intersection(names)):
        raise ValueError(
            f"a criterion is called {taken[0]!r}, as a metric is: give it another name"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two criteria are called {twice[0]!r}: give one another name")


@model_judge(RubricSettings)
async def rubric(
    task: Task, trajectory: Trajectory, model: ChatModel, settings: RubricSettings
) -> Judgement:
    """Judge the final answer. Raises ModelFault, ValueError for a task without criteria."""
    answer = answer_of(trajectory)
    criteria = criteria_of(task, settings)
    order = random.Random(hashlib.sha256(answer.encode()).digest()).sample(criteria, len(criteria))
    choice = record(settings.reasons, verdict=one_of(YES, NO, UNSURE))
    prompt = find_prompt("rubric", settings.prompt)
    found = await verdict(
        model,
        prompt,
        {
            "question": marked("question", question_of(trajectory), settings.max_characters),
            "answer": marked("answer", answer, settings.max_characters),
            "criteria": "\n".join(f"- {one.name}: {one.text}" for one in order),
        },
        record(False, **{one.name: choice for one in order}),
        settings,
    )
    verdicts = {one.name: str(found.found[one.name]["verdict"]) for one in criteria}
    reward = weighted(criteria, verdicts, settings.unsure)
    kept = length_factor(words(answer), settings.max_words)
    values = {YES: 1.0, NO: 0.0, UNSURE: settings.unsure}
    return Judgement(
        {"rubric": reward * kept},
        metrics={
            **{name: values[said] for name, said in verdicts.items()},
            "cannot_tell": sum(said == UNSURE for said in verdicts.values()) / len(criteria),
            "words": float(words(answer)),
        },
        version=prompt.version,
        models=(found.model,),
        reasons=tuple(
            f"{one.name}: {verdicts[one.name]}: {found.found[one.name].get('reason', '')}"
            for one in criteria
        ),
        asked=1,
        cached=int(found.cached),
    )


def criteria_of(task: Task, settings: RubricSettings) -> list[Criterion]:
    """The criteria for a task. Raises ValueError."""
    criteria, where = list(settings.criteria), f"task {task.id}: {settings.column!r}"
    given = _of_column(task, settings.column) if settings.column else []
    if given is None and not criteria:
        there = ", ".join(task.data) or "nothing"
        raise ValueError(f"{where}: there is no such column in its data (there is {there})")
    if given is not None and not isinstance(given, list):
        raise ValueError(
            f"{where} has to be a list of criteria or of sentences, not {shown(given)}"
        )
    for number, one in enumerate(cast(Sequence[object], given or ()), 1):
        values = one if isinstance(one, Mapping) else {"text": str(one)}
        try:
            criterion = read_settings(Criterion, dict(cast(Mapping[str, object], values)))
        except BadSettings as error:
            raise ValueError(f"{where}: criterion {number}: {error}") from None
        named = cast(Criterion, criterion)
        criteria.append(named if named.name else _named(named, f"criterion_{number}"))
    try:
        _check_names([one.name for one in criteria])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not any(one.weight for one in criteria):
        raise ValueError(f"{where}: it has no criterion whose weight is not 0")
    return criteria


def _of_column(task: Task, column: str) -> object:
    """The cell of a task's data, or of the metadata of a data set's row; None where there is none."""
    for place in (column, f"metadata.{column}"):
        try:
            found = cell(task.data, place)
        except ValueError:
            continue
        if isinstance(found, str) and found.lstrip().startswith("["):  # of a table
            with suppress(ValueError):
                return cast(object, json.loads(found))
        return found
    return None


def _named(criterion: Criterion, name: str) -> Criterion:
    return criterion.model_copy(update={"name": name})


def weighted(criteria: Sequence[Criterion], verdicts: Mapping[str, str], unsure: float) -> float:
    """The weighted share of what is as it should be, from 0 to 1: a criterion with a weight below 0 counts
    where its answer is no."""
    total = earned = 0.0
    for one in criteria:
        value = {YES: 1.0, NO: 0.0}.get(verdicts[one.name], unsure)
        if one.weight < 0 and verdicts[one.name] != UNSURE:
            value = 1.0 - value
        total += abs(one.weight)
        earned += abs(one.weight) * value
    return earned / total


def length_factor(count: int, most: int) -> float:
    """1 up to so many words, then falling, 0 from twice as many on."""
    return 1.0 if not most or count <= most else max(0.0, 2.0 - count / most)
