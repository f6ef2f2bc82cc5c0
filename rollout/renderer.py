"""Messages to tokens and back: the only place in `rollout` that knows the tokenizer.

Tokens in, tokens out: the ids an engine returned are never derived again from text. The first prompt
is rendered whole; what an environment says later is rendered as a *suffix*, found by rendering a
stand-in conversation with and without the new messages, and appended to the ids there are.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from envs.message import Message, ToolCall, ToolSchema
from rollout.thought import opens_thought
from rollout.tool_format import ToolFormat, parse_calls, split_completion

_STAND_IN = "stand-in"
# Where a special token that somebody wrote in a message is cut, so that it stays mere text. A Unicode
# noncharacter: no text that is meant for interchange holds it.
_CUT = "\ufdd0"


class Renderer:
    """Renders for one checkpoint's tokenizer and chat template."""

    def __init__(self, checkpoint: str | Path, tool_format: ToolFormat) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(checkpoint))
        if not self.tokenizer.chat_template:
            raise ValueError(f"{checkpoint}: the tokenizer has no chat template")
        self.tool_format: ToolFormat = tool_format
        self.eos_ids: tuple[int, ...] = (self.tokenizer.eos_token_id,)
        self._end = self.tokenizer.eos_token
        self._special = re.compile("|".join(map(re.escape, self._special_tokens())))

    @cached_property
    def thinking(self) -> bool:
        """True if the template's prompt leaves the policy in the middle of a thought."""
        return opens_thought(self._text([Message("user", _STAND_IN)], (), generate=True))

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        """Ids of an opening, ready for the policy to write its first turn."""
        return self._encode(self._text(messages, tools, generate=True))

    def suffix(self, messages: Sequence[Message], completion: Sequence[int]) -> list[int]:
        """Ids to append after `completion` so that the policy can answer `messages`."""
        before = [Message("user", _STAND_IN), Message("assistant", _STAND_IN)]
        head = self._text(before[:1], (), generate=True) + _STAND_IN
        text = self._text([*before, *messages], (), generate=True)
        if not text.startswith(head):
            raise ValueError(
                "the chat template rewrites earlier turns when a later one comes: "
                "its conversations cannot be continued token by token"
            )
        tail = text[len(head) :]
        if completion and completion[-1] in self.eos_ids:
            tail = tail.removeprefix(self._end)
        return self._encode(tail)

    def parse(self, completion: Sequence[int]) -> tuple[str, tuple[ToolCall, ...]]:
        """A completion as plain text and tool calls, its thought left out. Raises MalformedCall."""
        return parse_calls(self._written(completion), self.tool_format, thinking=self.thinking)

    def split(self, completion: Sequence[int]) -> tuple[str, str]:
        """A completion's thought, and the rest of its text."""
        return split_completion(self._written(completion), self.tool_format, thinking=self.thinking)

    def _written(self, completion: Sequence[int]) -> str:
        """A completion's text without its end mark."""
        ends = bool(completion) and completion[-1] in self.eos_ids
        return self.text(completion[:-1] if ends else completion)

    def text(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens shown."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def demonstration(
        self, opening: Sequence[Message], tools: Sequence[ToolSchema], said: Sequence[Message]
    ) -> tuple[list[int], list[bool]]:
        """Ids of a whole played episode, and which of them the policy is to learn to write.

        Built turn by turn as an episode is, so that demonstrations and rollouts have the same tokens.
        """
        ids = self.prompt(opening, tools)
        learn = [False] * len(ids)
        pending: list[Message] = []
        completion: list[int] = []
        for message in said:
            if message.role != "assistant":
                pending.append(message)
                continue
            if pending:
                suffix = self.suffix(pending, completion)
                ids += suffix
                learn += [False] * len(suffix)
                pending = []
            completion = self._completion(message)
            ids += completion
            learn += [True] * len(completion)
        return ids, learn

    def _completion(self, message: Message) -> list[int]:
        head = self._text([Message("user", _STAND_IN)], (), generate=True)
        text = self._text([Message("user", _STAND_IN), message], (), generate=False)
        if not text.startswith(head):
            raise ValueError("the chat template renders no assistant turn after its own prompt")
        end = text.index(self._end, len(head)) + len(self._end)
        return self._encode(text[len(head) : end])

    def _text(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], *, generate: bool
    ) -> str:
        return self.tokenizer.apply_chat_template(
            [self._as_chat(m) for m in messages],
            tools=[t.as_chat() for t in tools] or None,
            add_generation_prompt=generate,
            tokenize=False,
        )

    def _as_chat(self, message: Message) -> dict[str, Any]:
        chat = message.as_chat()
        if message.role != "assistant":
            # A tool that echoes its input, or a user, must not be able to end a turn and begin another.
            chat["content"] = self._special.sub(
                lambda found: found[0][:1] + _CUT + found[0][1:], chat["content"]
            )
        return chat

    def _special_tokens(self) -> list[str]:
        added = {str(token) for token in self.tokenizer.added_tokens_decoder.values()}
        return sorted(added, key=len, reverse=True)

    def _encode(self, text: str) -> list[int]:
        pieces = text.split(_CUT)
        return [i for p in pieces for i in self.tokenizer.encode(p, add_special_tokens=False)]
