"""`dorado model formats`: how a checkpoint writes thoughts, calls, results and history, as a run takes it.

Flows in: a checkpoint's folder or Hub name. Flows out: a line per question, or the same as JSON. Refuses a
checkpoint whose tokenizer or chat template cannot be read; one that cannot be played says why.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from envs.message import Message, Role, ToolCall
from rl.config_error import ConfigError
from rollout.format import FORMATS, Format

if TYPE_CHECKING:
    from rollout.renderer import Renderer

HISTORY = {
    "all": "all of them stay",
    "until_user": "they stay while tools answer; when the user speaks they go, and a segment begins",
    "none": "they go as soon as the next turn begins, which begins a segment",
}
# Roles beside user and assistant, from most to least.
ROLES: tuple[tuple[Role, ...], ...] = (("system", "tool"), ("tool",), ("system",), ())


def known_formats() -> dict[str, str]:
    """Every format by name: who writes so, and who reads it."""
    return {name: f"{record.models} ({_reader(record)})" for name, record in FORMATS.items()}


def describe(model: str) -> Mapping[str, str]:
    """Describe the format that a run would take a checkpoint to have. Raises ConfigError."""
    from rollout.history import PROBED
    from rollout.renderer import Renderer

    folder = Path(model)
    if not folder.exists() and (folder.is_absolute() or model.startswith(".")):
        raise ConfigError(f"MODEL: the folder {model} does not exist")
    if folder.is_dir() and not any([*folder.glob("*token*"), *folder.glob("vocab*")]):
        raise ConfigError(
            f"MODEL: {model} has no tokenizer (tokenizer.json), so it is no checkpoint"
        )
    try:
        renderer = Renderer(model)
    except Exception as error:  # a tokenizer of others can be broken in any way
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"MODEL: {said}") from None
    record = renderer.format
    call = Message("assistant", "", (ToolCall(PROBED.name, {"probe": "iron"}),))
    told = [Message("tool", "17 grams", name=PROBED.name)]
    mark = renderer.thought_mark
    begun = ", which its prompt begins" if renderer.thinking else ""
    return {
        "format": f"{record.name}: {record.models}",
        "calls": _reader(record),
        "a call": _tried(lambda: renderer.completion_text(call)),
        "a result": _tried(lambda: renderer.after_turn(told)),
        "thoughts": f"begin with {mark!r}{begun}" if mark else "none that the template knows",
        "earlier thoughts": HISTORY[renderer.history],
        "a turn ends with": ", ".join(repr(renderer.text([id])) for id in renderer.eos_ids),
        "played": _played(renderer),
    }


def _reader(record: Format) -> str:
    if record.parser:
        return f"read by vLLM's parser {record.parser!r}"
    return "none" if record.name == "text" else "read by Dorado's own reader"


def _tried(render: Callable[[], str]) -> str:
    try:
        return repr(render())
    except Exception as error:  # the template's own complaint, or the renderer's
        return f"refused: {error}"


def _played(renderer: "Renderer") -> str:
    """With which roles the template plays, and why not with more."""
    from rollout.template_check import TemplateFault, check_template

    why = ""
    for roles in ROLES:
        try:
            check_template(renderer, roles=frozenset(roles))
        except TemplateFault as fault:
            why = why or str(fault)
        else:
            said = " and ".join(("user", *roles))
            return f"turn by turn with {said}" + (f"; not with more: {why}" if why else "")
    return f"one turn only: {why}"
