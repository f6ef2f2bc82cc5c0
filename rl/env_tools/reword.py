"""`dorado env reword`: a pack whose requests a model has put into other words, with every fact still in them.

In: a pack, a writer (a chat of messages in, a text out). Out: another pack, the same tasks with other texts;
a request whose rewording lost, moved or invented something, several times, keeps its own. The rubric looks at
the database and never at the text, so a text is right if it says what the first one said: each name, word and
number of the world and each numbered point, in the same order, and no other. What a call that was interrupted
has got lies beside the pack and is not asked for again."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from envs.generated.pack import Pack, PackMistake, write_tasks
from envs.generated.task_data import GeneratedTask
from envs.generated.wording import body_and_end
from envs.message import JsonObject
from rl.config_error import ConfigError
from rl.env_tools.domain_writer import Writer
from rl.env_tools.packs import new_pack

ATTEMPTS = 3
_ORDER = """Say the following request to a service desk in other words, as a person would write it.
Keep every name, number, date and id exactly as it is, all of them in the order in which they come, and the
numbers of the points, such as (1). Add nothing and leave nothing out. Answer with the new text alone.

{text}"""
_NUMBER = r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\d)"


@dataclass(frozen=True)
class Reworded:
    """A task's new request, or its own where none was right; `why`: what the last attempt lacked."""

    request: str
    taken: bool
    why: str = ""


def reworded(task: GeneratedTask, writer: Writer, attempts: int = ATTEMPTS) -> Reworded:
    """Ask for other words until they are right. Raises what the writer raises."""
    body, end = body_and_end(task.request)
    chat: list[JsonObject] = [{"role": "user", "content": _ORDER.format(text=body)}]
    why = ""
    for _ in range(attempts):
        text = " ".join(writer(chat).split())
        why = fault_of(text, body, task)
        if not why:
            return Reworded(f"{text} {end}", True)
        chat += [
            {"role": "assistant", "content": text},
            {"role": "user", "content": f"That is not the same request: {why}. Write it anew."},
        ]
    return Reworded(task.request, False, why)


def words_of(task: GeneratedTask) -> set[str]:
    """Words that have to be said as they are: names of the world, what calls hold, what the user keeps back.

    A plain word of a row, such as a state called `in`, is anybody's.
    """
    rows = (row for some in task.rows.values() for row in some)
    held = {str(value) for row in rows for value in row.values()}
    names = {word for word in held if re.search(r"[A-Z0-9]|\w\W+\w", word)}
    called = {str(value) for step in task.steps for value in step.args.values()}
    found = names | called | set(task.facts)
    return {word for word in found if len(word) > 1 and not re.fullmatch(_NUMBER, word)}


def facts_of(task: GeneratedTask, text: str) -> list[str]:
    """Points, names and words of the world, and numbers that a text says, in its order."""
    words = sorted(words_of(task), key=len, reverse=True)
    named = [rf"(?<!\w){re.escape(word)}(?!\w)" for word in words]
    return re.findall("|".join([r"\(\d+\)", *named, _NUMBER]), text)


def fault_of(text: str, body: str, task: GeneratedTask) -> str:
    """Say what a new text lacks or has too much, in a clause; "" where it is right."""
    if not text:
        return "it is empty"
    if len(text) > 3 * len(body) + 200:
        return "it is much longer"
    before, now = facts_of(task, body), facts_of(task, text)
    if before == now:
        return ""
    if lost := sorted((Counter(before) - Counter(now)).keys()):
        return f"it does not say {lost[0]} as often"
    if more := sorted((Counter(now) - Counter(before)).keys()):
        return f"it says {more[0]} where that was not said"
    return "its names and numbers come in another order"


def reword(source: Path, out: Path, writer: Writer, *, model: str, at_once: int) -> dict[str, Any]:
    """Write the reworded pack; returns its head. Raises ConfigError."""
    try:
        with new_pack(out) as partial:
            pack = Pack(source)
            known = _Known(out.parent / f".{out.name}.reworded.jsonl", f"{pack.digest} {model}")
            missing = [one.id for one in pack.entries() if one.id not in known.texts]
            with ThreadPoolExecutor(at_once) as pool:
                asked = [
                    pool.submit(lambda i=i: (i, reworded(pack.task(i), writer))) for i in missing
                ]
                try:
                    for one in asked:
                        known.keep(*one.result())
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)
            head = _write(pack, partial, known, model)
    except PackMistake as error:
        raise ConfigError(str(error)) from None
    known.remove()
    return head


class _Known:
    """Keeps what was reworded so far, in a file: first of which pack and by whom, then a line a task."""

    def __init__(self, file: Path, whose: str) -> None:
        self.file = file
        self.texts: dict[int, Reworded] = {}
        lines: list[Any] = []
        with suppress(OSError, ValueError):
            for line in file.read_text(encoding="utf-8").splitlines():
                lines.append(json.loads(line))
        # Written anew: the last line may have been cut off half-way.
        file.write_text(json.dumps(whose) + "\n", encoding="utf-8")
        for id, *rest in lines[1:] if lines[:1] == [whose] else ():
            self.keep(int(id), Reworded(*rest))

    def keep(self, id: int, one: Reworded) -> None:
        """Note one task."""
        self.texts[id] = one
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps([id, *astuple(one)]) + "\n")

    def remove(self) -> None:
        """Forget it all: the pack is there."""
        self.file.unlink(missing_ok=True)


def _write(pack: Pack, folder: Path, known: _Known, model: str) -> dict[str, Any]:
    """Write the new pack; returns its head."""

    def each() -> Iterator[dict[str, Any]]:
        for id in sorted(known.texts):
            yield pack.task(id).as_json() | {"request": known.texts[id].request}

    shutil.copytree(pack.folder / "domains", folder / "domains")
    shutil.copy(pack.folder / "verification.json", folder)
    count, digest = write_tasks(folder / "tasks.sqlite", each())
    taken = sum(one.taken for one in known.texts.values())
    told = {"by": model, "of": pack.digest, "reworded": taken, "as_they_were": count - taken}
    head = {**pack.sheet, "digest": digest, "wording": told}
    (folder / "pack.json").write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")
    card = (pack.folder / "README.md").read_text(encoding="utf-8")
    card += (
        f"\n# Reworded, as pack {digest}\n\n{taken} of {count} requests were put into other words by "
        f"{model}: each says every name, word and number of the first, and no other of the world. "
        f"{count - taken} are as they were.\n"
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return head
