"""Tries a chat template before a run: what it loses, and what it writes otherwise turn by turn than at once.

Flows in: a renderer. Flows out: nothing, or a TemplateFault that names the role, the turn and what is lost.
An episode is rendered turn by turn (`rollout.renderer`), so a template has to write each message by itself,
and leave it as it is when more follows. Left out on purpose: what a template does with a text beside a tool
call, which in an episode is the policy's own tokens.
"""

from collections.abc import Sequence
from dataclasses import replace

from envs.message import Message, Role, ToolCall, ToolSchema
from rollout.renderer import Renderer
from rollout.thought import THOUGHTS

# Characters of a template's text that a sentence shows.
_SHOWN = 60
_ADVICE = "give the checkpoint a chat_template that writes every message in its place"
_TOOL = ToolSchema(
    "weigh_probe",
    "weighs a probe",
    {"type": "object", "properties": {"probe": {"type": "string", "description": "its name"}}},
)
_DIALOGUE = (
    Message("system", "probe rule"),
    Message("user", "first probe"),
    Message("assistant", "answer one"),
    Message("user", "second probe"),
    Message("assistant", "answer two"),
    Message("user", "third probe"),
    Message("assistant", "answer three"),
    Message("user", "fourth probe"),
)
_TOOL_USE = (
    Message("system", "probe rule"),
    Message("user", "weigh the probe"),
    Message("assistant", "", (ToolCall(_TOOL.name, {"probe": "iron"}),)),
    Message("tool", "", name=_TOOL.name),
    Message("assistant", "once more", (ToolCall(_TOOL.name, {"probe": "copper"}),)),
    Message("tool", "17 grams", name=_TOOL.name),
    Message("assistant", "", (ToolCall(_TOOL.name, {"probe": "tin"}),)),
    Message("tool", "18 grams", name=_TOOL.name),
    Message("tool", "19 grams", name=_TOOL.name),
    Message("assistant", "all weighed"),
    Message("user", "thank you"),
)


class TemplateFault(ValueError):
    """A chat template that episodes cannot be played with; one sentence says why."""


def check_template(
    renderer: Renderer,
    *,
    roles: frozenset[Role] = frozenset(("system", "tool")),
    turns: int = 8,
    one_sequence: bool = False,
) -> None:
    """Raise TemplateFault unless a probe conversation keeps every text, at once and turn by turn.

    roles: those beside user and assistant. turns: of the policy; with one, nothing follows its answer.
    one_sequence: thoughts have to stay, because no segment can begin where the template drops them.
    """
    probe = _Probe(renderer, (_TOOL,) if "tool" in roles else (), turns)
    for conversation in (_DIALOGUE, _TOOL_USE)[: 2 if "tool" in roles else 1]:
        opening = [m for m in conversation[:2] if m.role != "system" or "system" in roles]
        probe.check_opening(opening, one_sequence)
        if turns == 1:
            continue
        if one_sequence and renderer.history != "all":
            raise probe.fault("drops the thoughts of earlier turns", later=True)
        said = conversation[2:]
        probe.check_whole([*opening, *said])
        if renderer.thought_mark and not renderer.without_thought:
            kept = _kept(said, renderer, thought=True)
            probe.check(opening, _with_thoughts(kept, renderer))
        if not renderer.thinking and not probe.writes_empty_thoughts():
            probe.check(opening, _kept(said, renderer, thought=False))
    probe.check_tools()


def _kept(said: Sequence[Message], renderer: Renderer, *, thought: bool) -> Sequence[Message]:
    """Cut what is said where a segment begins (`rollout.context`)."""
    answers = [n for n, m in enumerate(said) if m.role != "assistant"]
    ends = [n for n in answers if renderer.forgets([said[n]], thought)]
    return said[: ends[0]] if ends else said


def _with_thoughts(said: Sequence[Message], renderer: Renderer) -> list[Message]:
    def thinking(message: Message, number: int) -> Message:
        if message.role != "assistant":
            return message
        if renderer.thoughts.field:
            # A text beside a call and a thought is too much for some, and of no interest here.
            content = "" if message.tool_calls else message.content
            return replace(message, reasoning=f"thought {number}", content=content)
        mark = renderer.thought_mark
        inline = f"{mark}\nthought {number}\n{THOUGHTS[mark]}\n\n{message.content}"
        return replace(message, content=inline)

    return [thinking(message, number) for number, message in enumerate(said, 1)]


class _Probe:
    """Conversations tried with one renderer. Every act raises TemplateFault."""

    def __init__(self, renderer: Renderer, tools: Sequence[ToolSchema], turns: int) -> None:
        self.renderer, self.tools, self.turns = renderer, tools, turns

    def check_opening(self, opening: Sequence[Message], itself: bool) -> None:
        """The policy sees the opening, and ends its turn with an end token. itself: its own."""
        self.check_whole(opening)
        try:
            self.renderer.ends_turn(itself=itself)
        except ValueError as error:
            raise TemplateFault(f"{self.renderer.checkpoint}: {error}") from None

    def writes_empty_thoughts(self) -> bool:
        """True if the template gives a last turn without a thought an empty one: thoughts are the rule."""
        mark = self.renderer.thought_mark
        try:
            return bool(mark) and mark in self.renderer.completion_text(Message("assistant", "so"))
        except ValueError:
            return False

    def check_tools(self) -> None:
        """The policy is told of its tools."""
        if self.tools and self.renderer.format.name == "text":
            raise self.fault(
                "writes tool calls in a way that is not known (model.format names one)"
            )
        shown = self.renderer.render([Message("user", "?")], self.tools, generate=True)
        if any(schema.name not in shown for schema in self.tools):
            raise self.fault("does not tell the policy of its tools (it never writes `tools`)")

    def check(self, opening: Sequence[Message], said: Sequence[Message]) -> None:
        """One conversation: what the policy sees before each of its turns, at once and turn by turn."""
        said = [
            replace(m, content="") if m.tool_calls and m.content[:1] not in "<[" else m
            for m in said[: max(_answered(said), default=0)]
        ]
        try:
            pieces = self._turn_by_turn(opening, said)
        except Exception as error:  # the template's own complaint, or the renderer's
            what = f"cannot be continued turn by turn: {error}"
            raise self.fault(what, later=True) from None
        for count, end in enumerate(_answered(said)):
            self._same(self.check_whole([*opening, *said[:end]]), pieces[: 2 * count + 1])

    def _same(self, whole: str, pieces: Sequence[tuple[str, str]]) -> None:
        at = 0
        for name, text in pieces:
            found = whole[at : at + len(text)]
            if found != text:
                raise self.fault(
                    f"writes {name} as {_short(found, text)} in a whole conversation and as "
                    f"{_short(text, found)} turn by turn: it counts or rewrites turns",
                    later=True,
                )
            at += len(text)

    def check_whole(self, messages: Sequence[Message]) -> str:
        """The conversation rendered at once, which every message adds to and every text is in."""
        before = whole = ""
        for number, message in enumerate(messages, 1):
            try:
                whole = self.renderer.render(messages[:number], self.tools)
            except Exception as error:  # jinja's, or what the template raises
                if message.role == "system":  # it may want a user's message with it
                    continue
                name = _named(messages, 1 if self._refuses_system(messages[:number]) else number)
                raise self.fault(f"refuses {name}: {error}", later=number > 2) from None
            if whole == before:
                raise self.fault(f"leaves out {_named(messages, number)}", later=number > 2)
            before = whole
        for number, message in enumerate(messages, 1):
            for text in _texts(message):
                if text not in whole:
                    what = "the thought" if text.startswith("thought ") else repr(text)
                    raise self.fault(
                        f"loses {what} in {_named(messages, number)}", later=number > 2
                    )
        return self.renderer.render(messages, self.tools, generate=messages[-1].role != "assistant")

    def _refuses_system(self, messages: Sequence[Message]) -> bool:
        """True if the messages can be rendered without their system message."""
        if messages[0].role != "system":
            return False
        try:
            self.renderer.render(messages[1:], self.tools)
        except Exception:  # as above
            return False
        return True

    def _turn_by_turn(
        self, opening: Sequence[Message], said: Sequence[Message]
    ) -> list[tuple[str, str]]:
        """(whose turn, its text) as an episode appends them. Raises whatever the template does."""
        messages = [*opening, *said]
        pieces = [("the opening", self.renderer.render(opening, self.tools, generate=True))]
        pending: list[Message] = []
        for number in range(len(opening) + 1, len(messages) + 1):
            message = messages[number - 1]
            if message.role == "assistant":
                written = self.renderer.completion_text(message)
                pieces.append((_named(messages, number), written))
                continue
            pending.append(message)
            if number == len(messages) or messages[number].role == "assistant":
                after = self.renderer.after_turn(pending, pieces[-1][1])
                pieces.append((_named(messages, number), after))
                pending = []
        return pieces

    def fault(self, what: str, *, later: bool = False) -> TemplateFault:
        """later: what does no harm where a policy has one turn."""
        once = ", or play one turn (episode.max_turns = 1)" if later else ""
        return TemplateFault(
            f"{self.renderer.checkpoint}: the chat template {what}; {_ADVICE}{once}"
        )


def _named(messages: Sequence[Message], number: int) -> str:
    """A message by role and turn, as in "the tool's result of turn 2 (role 'tool')"."""
    message = messages[number - 1]
    turn = sum(m.role == "assistant" for m in messages[:number])
    names = {
        "system": "the system message",
        "user": "the user's message" + (f" after turn {turn}" if turn else ""),
        "assistant": f"the assistant's {'tool call' if message.tool_calls else 'answer'} of turn {turn}",
        "tool": f"the {'' if message.content else 'empty '}result of the tool called in turn {turn}",
    }
    return f"{names[message.role]} (role {message.role!r})"


def _answered(said: Sequence[Message]) -> list[int]:
    """How much of what is said stands before each of the policy's turns, and before one that would follow."""
    before = [n for n, m in enumerate(said) if m.role == "assistant"]
    return [*before, *([len(said)] if said and said[-1].role != "assistant" else [])]


def _texts(message: Message) -> list[str]:
    """The texts of a message that a rendering has to hold."""
    lines = [line for line in message.content.splitlines() if line and line[0] not in "<["]
    if message.reasoning:
        lines.insert(0, message.reasoning)
    if message.tool_calls:
        thoughts = [line for line in lines if line.startswith("thought ")]
        return [*thoughts, *(str(v) for c in message.tool_calls for v in c.arguments.values())]
    return lines


def _short(text: str, other: str) -> str:
    """The part of a text from shortly before where it differs from another."""
    pairs = zip(text, other, strict=False)
    same = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(text), len(other)))
    part = text[max(0, same - 10) :]
    return repr(part if len(part) <= _SHOWN else f"{part[:_SHOWN]}…")
