"""Principles: a judge of writing whose rules are data, tuned against its opponent (arXiv 2508.21476).

Reward 1 for good, 0 for bad. The rules are a file (`dorado judge tune` writes one) or a list in the settings.
"""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import model_validator

from envs.chat_model import ChatModel
from envs.env import Task
from envs.prompt import Prompt, marked
from reward.judges.prompt import find_prompt
from reward.judges.shown import answer_of, question_of
from reward.judges.verdict import Verdict, one_of, record, verdict
from reward.model_judge import JudgeSettings, model_judge
from rollout.trajectory import Judgement, Trajectory

GOOD, BAD = "good", "bad"
# More of them no judge keeps in mind (section 3.2 of the paper has ten).
MOST_PRINCIPLES = 10


@dataclass(frozen=True)
class Principles:
    """Rules that good writing keeps: `Principles(("It does not repeat itself.",))`."""

    texts: tuple[str, ...]

    @property
    def version(self) -> str:
        """The same for equal rules, wherever they come from."""
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()[:8]

    @property
    def listed(self) -> str:
        """For a prompt."""
        return "\n".join(f"{number}. {text}" for number, text in enumerate(self.texts, 1))


class UnreadablePrinciples(ValueError):
    """A file that holds no principles; the message says why."""


def read_principles(file: Path) -> Principles:
    """The principles of a TOML file: `principles = ["It does not repeat itself."]`.

    Raises UnreadablePrinciples.
    """
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8-sig")).get("principles")
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadablePrinciples(f"{file}: {error}") from None
    return made(found, str(file))


def made(found: object, where: str) -> Principles:
    """Principles out of what a file or a model has said. Raises UnreadablePrinciples."""
    texts = (
        tuple(one.strip() for one in found if isinstance(one, str))
        if isinstance(found, list)
        else ()
    )
    if not isinstance(found, list) or not texts or len(texts) != len(found) or not all(texts):
        raise UnreadablePrinciples(
            f'{where}: principles have to be a list of sentences, such as ["It does not repeat itself."]'
        )
    if len(texts) > MOST_PRINCIPLES:
        raise UnreadablePrinciples(
            f"{where}: {len(texts)} principles are more than a judge keeps in mind, {MOST_PRINCIPLES}"
        )
    return Principles(texts)


class PrinciplesSettings(JudgeSettings):
    """file: the principles, as `dorado judge tune` writes them; or principles: themselves.

    reasons: ask for one before the verdict.
    """

    file: str = ""
    principles: tuple[str, ...] = ()
    reasons: bool = True

    @model_validator(mode="after")
    def _one_source(self) -> "PrinciplesSettings":
        if bool(self.file) == bool(self.principles):
            raise ValueError("give exactly one of file and principles")
        self.read()
        return self

    def read(self) -> Principles:
        """The principles. Raises UnreadablePrinciples."""
        if self.file:
            return read_principles(Path(self.file))
        return made(list(self.principles), "principles")


async def detected(
    question: str,
    answer: str,
    principles: Principles,
    model: ChatModel,
    settings: JudgeSettings,
    prompt: Prompt,
    *,
    reasons: bool,
) -> Verdict:
    """Ask whether a text is good by these principles. Raises ModelFault."""
    values = {
        "principles": principles.listed,
        "question": marked("question", question, settings.max_characters),
        "answer": marked("answer", answer, settings.max_characters),
    }
    return await verdict(
        model, prompt, values, record(reasons, verdict=one_of(GOOD, BAD)), settings
    )


@model_judge(PrinciplesSettings)
async def principles(
    task: Task, trajectory: Trajectory, model: ChatModel, settings: PrinciplesSettings
) -> Judgement:
    """Judge the final answer. Raises ModelFault, UnreadablePrinciples."""
    rules, prompt = settings.read(), find_prompt("principles", settings.prompt)
    found = await detected(
        question_of(trajectory),
        answer_of(trajectory),
        rules,
        model,
        settings,
        prompt,
        reasons=settings.reasons,
    )
    said = str(found.found["verdict"])
    return Judgement(
        {"principles": float(said == GOOD)},
        version=f"{prompt.version}+{rules.version}",
        models=(found.model,),
        reasons=(f"{said}: {found.found.get('reason', '')}",),
        asked=1,
        cached=int(found.cached),
    )


def dumped(found: Principles) -> str:
    """The principles as the text of a TOML file."""
    lines: Sequence[str] = [f"    {json.dumps(one, ensure_ascii=False)},\n" for one in found.texts]
    return f"# version {found.version}\nprinciples = [\n{''.join(lines)}]\n"
