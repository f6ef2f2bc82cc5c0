"""Domains that a model writes: asked for, checked, sent back with what is wrong, and kept or thrown out.

In: a writer (a chat of messages in, a text out) and what the world is to be about. Out: a domain that passes
all that a person's has to pass, or `NotWritten`; each attempt with its reasons. What a model writes is data:
there is no code of it to run. Its acceptance: it can be read, has twenty tools, is no renaming of a domain
that is known, and every act of it occurs in a verified task."""

import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.generated.domain import Domain
from envs.generated.domain_file import FOLDER, DomainMistake, read_domain
from envs.generated.generator import NoTask, Tally, make_task
from envs.generated.task_data import Difficulty
from envs.generated.tool_graph import structure
from envs.message import JsonObject
from envs.text import encodable
from rl.config_error import ConfigError
from rl.env_tools.eval.chat_model import request
from rl.models.http_wire import base_of
from rollout.engine import EngineFault

Writer = Callable[[list[JsonObject]], str]
ATTEMPTS, LEAST_TOOLS, TASKS_PER_ACT, ANSWER_SECONDS = 5, 20, 2, 600.0
_BLOCK = re.compile(r"```(?:toml)?\s*\n(.*?)```", re.DOTALL)
_ORDER = """Write a domain file about: {about}.
It is TOML like this one, with other things, other tools and another structure: four or five entities, twelve
acts or more.

```toml
{example}```

Answer with one ```toml block and nothing else. Every text in `ask` has to say every argument in braces. No
word in `needs` and `effects` may be called as an argument of its tool is, unless that argument is meant."""


@dataclass(frozen=True)
class Attempt:
    """A text that the model wrote, and why it was not taken; () for one that was."""

    text: str
    reasons: tuple[str, ...]


class NotWritten(Exception):
    """No attempt was accepted."""

    def __init__(self, attempts: Sequence[Attempt]) -> None:
        last = "; ".join(attempts[-1].reasons) if attempts else "there was none"
        super().__init__(f"no domain in {len(attempts)} attempts; the last: {last}")
        self.attempts = tuple(attempts)


def written_domain(
    writer: Writer, about: str, known: Iterable[Domain], attempts: int = ATTEMPTS
) -> tuple[Domain, list[Attempt]]:
    """A domain that is accepted, and all attempts. Raises NotWritten, and what the writer raises."""
    example = (FOLDER / "clinic.toml").read_text(encoding="utf-8")
    chat: list[JsonObject] = [
        {"role": "user", "content": _ORDER.format(about=about, example=example)}
    ]
    taken = list(known)
    tried: list[Attempt] = []
    for _ in range(attempts):
        answer = writer(chat)
        domain, reasons = judged(answer, taken)
        tried.append(Attempt(answer, tuple(reasons)))
        if domain is not None and not reasons:
            return domain, tried
        told = "\n".join(f"- {one}" for one in reasons)
        chat += [
            {"role": "assistant", "content": answer},
            {
                "role": "user",
                "content": f"That cannot be used:\n{told}\nWrite the whole file anew.",
            },
        ]
    raise NotWritten(tried)


def judged(answer: str, known: Iterable[Domain]) -> tuple[Domain | None, list[str]]:
    """The domain of an answer, and why it is not accepted, () where it is."""
    block = _BLOCK.search(answer)
    if block is None:
        return None, ["the answer has no ```toml block"]
    try:
        domain = read_domain(tomllib.loads(block.group(1)))
    except RecursionError:
        return None, ["the block is nested too deeply"]
    except DomainMistake as error:
        return None, error.mistakes
    except ValueError as error:
        return None, [f"the block is no TOML: {error}"]
    if len(domain.tools) < LEAST_TOOLS:
        return domain, [f"it has {len(domain.tools)} tools, and {LEAST_TOOLS} are the least"]
    same = {structure(one): one.name for one in known}
    if structure(domain) in same:
        return domain, [f"it is the domain {same[structure(domain)]} with other names"]
    if any(one == domain.name for one in same.values()):
        return domain, [f"there is a domain called {domain.name} already"]
    return domain, _unplayable(domain)


def _unplayable(domain: Domain) -> list[str]:
    """Acts that no verified task uses."""
    tally = Tally()
    try:
        for i in range(TASKS_PER_ACT * len(domain.acts)):
            if len(tally.used) == len(domain.acts):
                return []
            make_task(domain, f"written/{i}", Difficulty(chain=1 + i % 2), tally)
    except NoTask as error:
        return [str(error)]
    unused = [tool.name for tool in domain.acts if tool.name not in tally.used]
    return [
        f"tool.{name}: no task was found that uses it, so its needs can hardly be met"
        for name in unused
    ]


def served_writer(url: str, model: str) -> Writer:
    """A model behind an OpenAI-compatible server. The writer raises ConfigError where it does not answer."""

    def write(chat: list[JsonObject]) -> str:
        body: JsonObject = {"model": model, "messages": chat}
        where = f"{base_of(url)}/chat/completions"
        try:
            return str(request(where, body, ANSWER_SECONDS)["choices"][0]["message"]["content"])
        except EngineFault as error:
            raise ConfigError(f"--with {url}: {error}") from None
        except (KeyError, IndexError, TypeError):
            raise ConfigError(f"--with {url}: the answer has no choices[0].message") from None

    return write


def keep_rejected(folder: Path, about: str, attempts: Iterable[Attempt]) -> None:
    """Write attempts that were not taken into files, each with its reasons on top."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "-", about.lower()).strip("-")[:40] or "domain"
    for i, one in enumerate(attempts, start=1):
        if one.reasons:
            why = "".join(f"# {reason}\n" for reason in one.reasons)
            (folder / f"{name}-{i}.txt").write_text(encodable(why + one.text), encoding="utf-8")
