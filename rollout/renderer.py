"""Messages to tokens and back: the only place in `rollout` that knows the tokenizer.

Tokens in, tokens out: the ids an engine returned are never derived again from text. The first prompt
is rendered whole; what an environment says later is rendered as a *suffix*, found by rendering a
stand-in conversation with the new messages, and appended to the ids there are. Whether a template allows
that is for `rollout.template_check` to say before a run.
"""

import re
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from envs.message import Message, ToolCall, ToolSchema
from rollout.thought import opens_thought
from rollout.tool_format import ToolFormat, parse_calls, split_completion

_QUESTION, _STAND_IN = "?", "stand-in for what the policy wrote"
_KEPT_PROMPTS = 32
# Where a control token that somebody wrote in a message is cut, so that it stays mere text. A Unicode
# noncharacter: no text that is meant for interchange holds it.
_CUT = "\ufdd0"


class Renderer:
    """Renders for one checkpoint's tokenizer and chat template.

    eos_ids: the tokens that end a turn, the tokenizer's own first; an engine stops at the same ones.
    """

    def __init__(self, checkpoint: str | Path, tool_format: ToolFormat) -> None:
        """Raises ValueError where the tokenizer has no chat template, or nothing that ends a turn."""
        self.checkpoint = str(checkpoint)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.checkpoint)
        if not self.tokenizer.chat_template:
            raise ValueError(f"{checkpoint}: the tokenizer has no chat template")
        self.tool_format: ToolFormat = tool_format
        self._prompts: dict[str, list[int]] = {}
        own = self.tokenizer.eos_token_id
        ends = [*([own] if own is not None else []), *_generation_ends(self.checkpoint)]
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(ends))
        if not self.eos_ids:
            raise ValueError(f"{checkpoint}: neither the tokenizer nor the model has an end token")
        # An id beyond the vocabulary has no text.
        marks = filter(None, (self.text([id]) for id in self.eos_ids))
        self._ends = re.compile("|".join(map(re.escape, marks)) or r"(?!)")
        self._control = re.compile("|".join(map(re.escape, self._control_tokens())) or r"(?!)")

    @cached_property
    def thinking(self) -> bool:
        """True if the template's prompt leaves the policy in the middle of a thought."""
        return opens_thought(self.render([Message("user", _QUESTION)], generate=True))

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        """Ids of an opening, ready for the policy to write its first turn.

        The members of a group open alike, at about the same time: the last openings are kept.
        """
        opening = repr((tuple(messages), tuple(tools)))
        found = self._prompts.get(opening)
        if found is None:
            found = self._encode(self.render(messages, tools, generate=True))
            while len(self._prompts) >= _KEPT_PROMPTS:
                self._prompts.pop(next(iter(self._prompts)), None)
            self._prompts[opening] = found
        return list(found)

    def suffix(self, messages: Sequence[Message], completion: Sequence[int]) -> list[int]:
        """Ids to append after `completion` so that the policy can answer `messages`."""
        if completion and completion[-1] in self.eos_ids:
            return self._encode(self.after_turn(messages))
        return self._encode(self._tail(messages, generate=True))

    def after_turn(self, messages: Sequence[Message]) -> str:
        """The template's text between the end mark of a turn and the next turn, `messages` in it."""
        tail = self._tail(messages, generate=True)
        end = self._ends.match(tail)
        return tail[end.end() :] if end else tail

    def ends_turn(self) -> None:
        """Raise ValueError unless the template ends the assistant's turn with an end token."""
        if not self._ends.search(self._tail((), generate=False)):
            marks = ", ".join(repr(self.text([id])) for id in self.eos_ids)
            raise ValueError(
                f"the chat template ends the assistant's turn with no end token ({marks}): a policy "
                "that writes as it does would never stop; name its mark as an eos_token_id in "
                "generation_config.json"
            )

    def _tail(self, messages: Sequence[Message], *, generate: bool) -> str:
        """The text that the template writes after the policy's own text, the turn's end mark first."""
        before = [Message("user", _QUESTION), Message("assistant", _STAND_IN)]
        text = self.render([*before, *messages], generate=generate)
        _, found, tail = text.partition(_STAND_IN)
        if not found:
            raise ValueError(
                "the chat template rewrites earlier turns when a later one comes: "
                "its conversations cannot be continued token by token"
            )
        return tail

    def parse(self, completion: Sequence[int]) -> tuple[str, tuple[ToolCall, ...]]:
        """A completion as plain text and tool calls, its thought left out. Raises MalformedCall."""
        return parse_calls(self._written(completion), self.tool_format, thinking=self.thinking)

    def split(self, completion: Sequence[int]) -> tuple[str, str]:
        """A completion's thought, and the rest of its text."""
        written = self._written(completion)
        return split_completion(written, self.tool_format, thinking=self.thinking)

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
            [self._as_chat(m) for m in messages],
            tools=[self._plain(t.as_chat()) for t in tools] or None,
            add_generation_prompt=generate,
            tokenize=False,
        )

    def _written(self, completion: Sequence[int]) -> str:
        """A completion's text without its end mark."""
        ends = bool(completion) and completion[-1] in self.eos_ids
        return self.text(completion[:-1] if ends else completion)

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
