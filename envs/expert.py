"""An environment's expert at work: every mistake of its author is one sentence.

Flows in: what `Env.expert` returned. Flows out: its messages, in exchange for the results of each. Refuses
what is no generator, a message that is none, and an exception, as ExpertMistake.
"""

import traceback
from collections.abc import Callable, Generator
from typing import cast

from envs.env import Expert
from envs.message import Message
from envs.text import shown, told


class ExpertMistake(Exception):
    """The sentence begins with `expert()`; `trace` is the traceback where it raised."""

    def __init__(self, sentence: str, trace: str = "") -> None:
        super().__init__(sentence)
        self.trace = trace


def watched(make: Callable[[], object]) -> Expert:
    """Yield the messages of the expert that `make` begins. Raises ExpertMistake."""
    results: list[str] | None = None
    try:
        begun = make()
    except Exception as error:
        raise _raised(error, results) from None
    if not isinstance(begun, Generator):
        raise ExpertMistake(
            "expert() has to be a generator, written as `def expert` with `yield call(...)` and "
            f"`yield say(...)`; it gave {shown(begun)}"
        )
    expert = cast(Generator[object, list[str], None], begun)
    while True:
        try:
            message = next(expert) if results is None else expert.send(results)
        except StopIteration:
            return
        except Exception as error:  # an author's code, over answers that it may not expect
            raise _raised(error, results) from None
        results = yield _message(message)


def _raised(error: Exception, results: list[str] | None) -> ExpertMistake:
    sentence = f"expert() raises {told(error)}"
    if results is not None:
        sentence += f", after the tool results {shown(results)}: it has to go on, whatever they are"
    return ExpertMistake(sentence, traceback.format_exc())


def _message(value: object) -> Message:
    if not isinstance(value, Message):
        raise ExpertMistake(
            f"expert() yields {shown(value)}: it has to yield say(...) or call(...)"
        )
    if value.role != "assistant":
        raise ExpertMistake(f"expert() yields a message of {value.role}: it speaks as the policy")
    return value
