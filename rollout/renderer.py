"""Messages to tokens and back: the only place in `rollout` that knows the tokenizer.

Tokens in, tokens out: the ids an engine returned are never derived again from text. The first prompt
is rendered whole; what an environment says later is rendered as a *suffix*, found by rendering a
stand-in conversation with the new messages, and appended to the ids there are. Whether a template allows
that is for `rollout.template_check` to say before a run.
"""

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from envs.message import Message, ToolCall, ToolSchema
from rollout.format import FORMATS, Format, FormatName, format_of
from rollout.history import PROBED, History, Thoughts, thoughts_of
from rollout.reading import Written, read
from rollout.thought import THOUGHTS, ends_thought, opens_thought

_QUESTION, _STAND_IN = "?", "stand-in for what the policy wrote"
_PROBE = Message("assistant", "", (ToolCall(PROBED.name, {"probe": "iron"}),))
_KEPT_PROMPTS = 32
# Where a control token that somebody wrote in a message is cut, so that it stays mere text. A Unicode
# noncharacter: no text that is meant for interchange holds it.
_CUT = "\ufdd0"


class Renderer:
    """Renders for one checkpoint's tokenizer and chat template.

    eos_ids: the tokens that end a turn, the tokenizer's own first; an engine stops at the same ones.
    format: how the policy writes calls and thoughts.
    """

    def __init__(self, checkpoint: str | Path, format: FormatName | None = None) -> None:
        """format: its name; None: the chat template says.

        Raises ValueError where the tokenizer has no chat template, or nothing that ends a turn.
        """
        self.checkpoint = str(checkpoint)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.checkpoint)
        if not self.tokenizer.chat_template:
            raise ValueError(f"{checkpoint}: the tokenizer has no chat template")
        self._prompts: dict[str, list[int]] = {}
        own = self.tokenizer.eos_token_id
        ends = [*([own] if own is not None else []), *_generation_ends(self.checkpoint)]
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(ends))
        if not self.eos_ids:
            raise ValueError(f"{checkpoint}: neither the tokenizer nor the model has an end token")
        # An id beyond the vocabulary has no text.
        self._end_marks = tuple(filter(None, (self.text([id]) for id in self.eos_ids)))
        self._ends = re.compile("|".join(map(re.escape, self._end_marks)) or r"(?!)")
        self._control = re.compile("|".join(map(re.escape, self._control_tokens())) or r"(?!)")
        template = str(self.tokenizer.chat_template)
        self._shows_ids = re.search(r"tool_call_id|\.id\b|\[['\"]id['\"]\]", template) is not None
        self.format: Format = FORMATS["text" if format is None else format]
        written = self._probed()
        if format is None:
            self.format = format_of(written, template)

    def _probed(self) -> str:
        """A conversation with a call, "" where the template writes none; how it wants calls is noted.

        Some templates want arguments as JSON text, some a content that is none.
        """
        for self._text_arguments, self._no_content in product((False, True), (False, True)):
            try:
                written = self.render([Message("user", _QUESTION), _PROBE], (PROBED,))
            except Exception:  # the template's own complaint
                continue
            if "iron" in written:
                return written
        self._text_arguments = self._no_content = False
        return ""

    @cached_property
    def thinking(self) -> bool:
        """True if the template's prompt leaves the policy in the middle of a thought."""
        return opens_thought(self.render([Message("user", _QUESTION)], generate=True))

    @cached_property
    def without_thought(self) -> bool:
        """True if the template's prompt ends with an empty thought, so that the policy writes none."""
        return ends_thought(self.render([Message("user", _QUESTION)], generate=True))

    @property
    def history(self) -> History:
        """Thoughts of earlier turns that the template keeps: all, until the user speaks, or none."""
        return self.thoughts.kept

    @cached_property
    def thoughts(self) -> Thoughts:
        """How the template treats thoughts. One that knows none keeps all, as a part of the text."""
        if not self.thinking and not self.thought_mark:
            return Thoughts("all", field=False)
        return thoughts_of(self.render, self.thought_mark)

    @cached_property
    def thought_mark(self) -> str:
        """The mark that begins a thought, where the template's prompt or its source has one."""
        prompt = self.render([Message("user", _QUESTION)], generate=True).rstrip()
        template = str(self.tokenizer.chat_template)
        own = self.format.thought
        known = [mark for mark in THOUGHTS if prompt.endswith(mark)]
        written = [m for m, end in THOUGHTS.items() if m in template or end in template]
        return next(iter([*known, *written, *([own] if own and own in template else [])]), "")

    def forgets(self, messages: Sequence[Message], thought: bool) -> bool:
        """True if the template writes earlier turns otherwise where `messages` answer the last one.

        thought: there is one in these turns, which templates drop.
        """
        user = any(message.role == "user" for message in messages)
        if user and self.format.user_begins:
            return True
        if self.history == "all" or not (thought or self.without_thought):
            return False
        return user or self.history == "none"

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        """Ids of an opening, or of a conversation that is rendered whole, ready for the policy to write.

        The members of a group open alike, at about the same time: the last openings are kept.
        """
        opening = repr((tuple(messages), tuple(tools)))
        found = self._prompts.get(opening)
        if found is None:
            found = self._encode(self._whole(messages, tools))
            while len(self._prompts) >= _KEPT_PROMPTS:
                self._prompts.pop(next(iter(self._prompts)), None)
            self._prompts[opening] = found
        return list(found)

    def _whole(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> str:
        """A conversation as the template writes it. Some (harmony's) refuse a tool's message where no call is
        before it: there the user says why a call could not be read."""
        try:
            return self.render(messages, tools, generate=True)
        except Exception:  # the template's own complaint
            shown = _by_users(messages)
            if shown == list(messages):
                raise
            return self.render(shown, tools, generate=True)

    def suffix(self, messages: Sequence[Message], completion: Sequence[int]) -> list[int]:
        """Ids to append after `completion` so that the policy can answer `messages`."""
        if completion and completion[-1] in self.eos_ids:
            return self._encode(self.after_turn(messages))
        return self._encode(self._tail(messages, generate=True))

    def after_turn(self, messages: Sequence[Message], turn: str | None = None) -> str:
        """The template's text between the end mark of a turn and the next turn, `messages` in it.

        turn: the turn's text, where it may be without an end mark; then the mark is part of what follows.
        """
        tail = self._tail(messages, generate=True)
        if turn is not None and not turn.endswith(self._end_marks):
            return tail
        if end := self._ends.match(tail):
            return tail[end.end() :]
        # Some templates close an answer before the mark that ends its turn.
        closed = self._tail((), generate=False)
        end = self._ends.search(closed)
        ended = closed[: end.end()] if end else ""
        return tail.removeprefix(ended)

    def ends_turn(self, *, itself: bool = False) -> None:
        """Raise ValueError unless the template ends the assistant's turn with an end token.

        It may be the mark that begins the next one, as in GLM's templates; with `itself` it may not.
        """
        after = self._tail((), generate=False)
        if not self._ends.search(after) and (
            itself or not self._ends.match(self._tail([Message("user", _QUESTION)], generate=True))
        ):
            marks = ", ".join(repr(self.text([id])) for id in self.eos_ids)
            raise ValueError(
                f"the chat template ends the assistant's turn with no end token ({marks}): a policy "
                "that writes as it does would never stop; name its mark as an eos_token_id in "
                "generation_config.json"
            )

    def _tail(self, messages: Sequence[Message], *, generate: bool) -> str:
        """The text that the template writes after the policy's own text, the turn's end mark first."""
        return self._tail_after(messages, generate=generate, calls=self._wants_calls)

    def _tail_after(self, messages: Sequence[Message], *, generate: bool, calls: bool) -> str:
        """The same. calls: tools' results come after calls, and not after an answer."""
        answers = [m for m in messages if m.role == "tool"] if calls else []
        # Some templates write a text beside a call behind its result: the stand-in is in the call.
        said = [{"probe": _STAND_IN}, *({} for _ in answers[1:])]
        names = [m.name or PROBED.name for m in answers]
        made = tuple(map(ToolCall, names, said))
        before = [Message("user", _QUESTION), Message("assistant", "" if made else _STAND_IN, made)]
        text = self.render([*before, *messages], generate=generate)
        _, found, tail = text.partition(_STAND_IN)
        if made and (end := self._ends.search(tail)):  # behind the stand-in's calls
            tail = tail[end.start() :]
        if not found:
            raise ValueError(
                "the chat template rewrites earlier turns when a later one comes: "
                "its conversations cannot be continued token by token"
            )
        return tail

    @cached_property
    def _wants_calls(self) -> bool:
        """True if the template refuses a tool's result behind an answer, or writes it otherwise there."""
        said = [Message("tool", "42", name=PROBED.name)]
        try:
            after_answer = self._tail_after(said, generate=True, calls=False)
        except Exception:  # the template's own complaint
            return True
        try:
            return after_answer != self._tail_after(said, generate=True, calls=True)
        except Exception:  # as above
            return False

    def read(self, completion: Sequence[int], tools: Sequence[ToolSchema] = ()) -> Written:
        """A completion's reasoning, answer and tool calls. tools: those that the policy was told of."""
        return self._reader(self._written(completion), tools, self.thinking)

    def prepare(self) -> None:
        """Load what reads calls: vLLM's parsers take seconds, which the first turn would wait for."""
        _ = self._reader

    @cached_property
    def _reader(self) -> Callable[[str, Sequence[ToolSchema], bool], Written]:
        if not self.format.parser:
            return lambda text, tools, thinking: read(text, tools, self.format, thinking=thinking)
        from rollout.vllm_parsers import reader_of  # vLLM: heavy

        return reader_of(self.format, self.tokenizer)

    def text(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens shown."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def demonstration(
        self,
        opening: Sequence[Message],
        tools: Sequence[ToolSchema],
        said: Sequence[Message],
        silent: Collection[int] = (),
    ) -> tuple[list[int], list[bool]]:
        """Ids of a whole played episode, and which of them the policy is to learn to write.

        Built turn by turn as an episode is, so that demonstrations and rollouts have the same tokens. silent:
        indices of what is said that is not learnt. Raises ValueError, and whatever the template does.
        """
        ids = self.prompt(opening, tools)
        learn = [False] * len(ids)
        pending: list[Message] = []
        completion: list[int] = []
        for index, message in enumerate(said):
            if message.role != "assistant":
                pending.append(message)
                continue
            if pending or completion:
                suffix = self.suffix(pending, completion)
                ids += suffix
                learn += [False] * len(suffix)
                pending = []
            completion = self._encode(self.completion_text(message))
            ids += completion
            learn += [index not in silent] * len(completion)
        return ids, learn

    def completion_text(self, message: Message) -> str:
        """An assistant's message as the policy would write it, with its end mark. Raises ValueError."""
        question = [Message("user", _QUESTION)]
        head = self.render(question, generate=True)
        text = self.render([*question, message])
        if not text.startswith(head):
            raise ValueError("the chat template renders no assistant turn after its own prompt")
        end = self._ends.search(text, len(head))
        said = repr((message.content, message.tool_calls))
        if mark := self._ends.search(said):
            raise ValueError(f"the assistant's text holds {mark[0]!r}, which ends its turn")
        return text[len(head) : end.end() if end else None]

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
        *,
        generate: bool = False,
    ) -> str:
        """Messages as the template writes them; control tokens in anybody's text are cut by `_CUT`.

        generate: ready for the policy to write. Raises whatever the template does.
        """
        return self.tokenizer.apply_chat_template(
            self._chats(messages),
            tools=[self._plain(t.as_chat()) for t in tools] or None,
            add_generation_prompt=generate,
            tokenize=False,
        )

    def _written(self, completion: Sequence[int]) -> str:
        """A completion's text without its end mark."""
        ends = bool(completion) and completion[-1] in self.eos_ids
        return self.text(completion[:-1] if ends else completion)

    def _chats(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Messages as dicts, with ids of calls and results where the template shows them."""
        chats = [self._as_chat(m) for m in messages]
        for chat in chats:
            if "tool_calls" not in chat:
                continue
            if self._no_content and not chat["content"]:
                chat["content"] = None
            for call in chat["tool_calls"] if self._text_arguments else ():
                arguments = call["function"]["arguments"]
                call["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False)
        if not self._shows_ids:
            return chats
        waiting: list[str] = []
        number = 0
        for chat in chats:
            for call in chat.get("tool_calls", ()):
                name = call["function"]["name"]
                call["id"] = self.format.call_id.format(name=name, n=number)
                waiting.append(call["id"])
                number += 1
            if chat["role"] == "tool" and waiting:
                chat["tool_call_id"] = waiting.pop(0)
        return chats

    def _as_chat(self, message: Message) -> dict[str, Any]:
        chat = message.as_chat()
        # A tool that echoes its input, or a user, must not be able to end a turn and begin another.
        return chat if message.role == "assistant" else self._plain(chat)

    def _plain(self, value: Any) -> Any:
        """The same value, with the control tokens in all of its texts cut."""
        if isinstance(value, str):
            return self._control.sub(lambda found: found[0][:1] + _CUT + found[0][1:], value)
        if isinstance(value, dict):
            return {self._plain(key): self._plain(one) for key, one in value.items()}
        return [self._plain(one) for one in value] if isinstance(value, list | tuple) else value

    def _control_tokens(self) -> list[str]:
        """Special tokens, and plain ones that the template writes as marks, such as "<tool_call>"."""
        template = str(self.tokenizer.chat_template)
        found = {
            text
            for token in self.tokenizer.added_tokens_decoder.values()
            if (text := str(token)) and (token.special or (_is_mark(text) and text in template))
        }
        return sorted(found, key=len, reverse=True)

    def _encode(self, text: str) -> list[int]:
        pieces = text.split(_CUT)
        return [i for p in pieces for i in self.tokenizer.encode(p, add_special_tokens=False)]


def _by_users(messages: Sequence[Message]) -> list[Message]:
    """The messages, those of tools that follow an answer without calls as the user's."""
    found: list[Message] = []
    called = False
    for message in messages:
        if message.role == "assistant":
            called = bool(message.tool_calls)
        orphan = message.role == "tool" and not called
        found.append(replace(message, role="user", name=None) if orphan else message)
    return found


def _is_mark(text: str) -> bool:
    return text[0] in "<[|" and text[-1] in ">]|"


def _generation_ends(checkpoint: str) -> list[int]:
    """End tokens of the generation config, or else of the model's, as vLLM takes them."""
    try:
        generation = GenerationConfig.from_pretrained(checkpoint)
    except OSError:
        try:
            generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(checkpoint))
        except (OSError, ValueError):
            return []
    ends = generation.eos_token_id
    return list(ends) if isinstance(ends, list | tuple) else [] if ends is None else [int(ends)]
