"""Preference pairs of files and of the Hugging Face Hub, read row by row, and made into tokens.

In: rows with `chosen` and `rejected`, and `prompt` or, without it, whole conversations of which both begin
alike; optionally `tools`, `margin` and `aspect`. Out: pairs of token ids. Whatever is wrong with a row is a
ConfigError of one sentence that names file and row.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envs.chat import Chat, read_chat
from envs.message import JsonObject
from envs.text import shown, told
from rl.chat_data import ChatSource
from rl.config_error import ConfigError
from trainer.reward_heads import NAME, Heads

if TYPE_CHECKING:
    from rollout.renderer import Renderer
    from trainer.reward_model import Preference
    from trainer.reward_scores import Anchor

# Conversations that a reward model's folder keeps as anchors.
MOST_ANCHORS = 32
ONE_HEAD = Heads()
_EXAMPLE = '{"prompt": "…", "chosen": "…", "rejected": "…"}'


@dataclass(frozen=True)
class PreferencePair:
    """Two conversations of which one is preferred. shared: how many messages they have in common. aspect: in
    which it is preferred; "": over all."""

    chosen: Chat
    rejected: Chat
    shared: int
    margin: float
    aspect: str = ""

    @property
    def prompt_digest(self) -> str:
        """A hash of what both answer: pairs of one prompt belong on one side of a split."""
        text = repr(self.chosen.messages[: self.shared])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_pairs(sources: Sequence[ChatSource]) -> Iterator[tuple[str, PreferencePair]]:
    """Yield the pairs of all sources with their names, in order. Raises ConfigError."""
    for source in sources:
        yield from source.rows_as("pair", read_pair)


def read_pair(row: JsonObject, *, from_table: bool = False) -> PreferencePair:
    """Return a row as a pair. Raises ValueError."""
    for column in ("chosen", "rejected"):
        if row.get(column) is None:
            raise ValueError(
                f"there is no column {column!r}, there are {', '.join(row) or 'none'}: a row has to be a "
                f"preference, such as {_EXAMPLE}"
            )
    prompt = next((row[n] for n in ("prompt", "messages") if row.get(n) is not None), None)
    before = [] if prompt is None else _as_messages(prompt, "user", "prompt")
    chats: list[Chat] = []
    for column in ("chosen", "rejected"):
        said = _as_messages(row[column], "assistant" if prompt is not None else None, column)
        # Some data sets repeat the prompt in both.
        whole = said if before and said[: len(before)] == before else [*before, *said]
        own = {"messages": whole} | {k: row[k] for k in ("tools", "system") if k in row}
        try:
            chats.append(read_chat(own, from_table=from_table))
        except ValueError as error:
            raise ValueError(f"{column}: {error}") from None
    chosen, rejected = chats
    if chosen.messages == rejected.messages:
        raise ValueError("chosen and rejected are the same, so neither is preferred")
    pairs = zip(chosen.messages, rejected.messages, strict=False)
    shared = next(
        (i for i, (a, b) in enumerate(pairs) if a != b),
        min(len(chosen.messages), len(rejected.messages)),
    )
    if not shared:
        raise ValueError(
            "chosen and rejected have no message in common, so they do not answer the same"
        )
    aspect = _aspect(row.get("aspect"))
    return PreferencePair(chosen, rejected, shared, _margin(row.get("margin")), aspect)


def _as_messages(value: object, role: str | None, column: str) -> list[Any]:
    """A column's messages. role: of one that is a text alone; None where that says too little."""
    if isinstance(value, str):
        if role is None:
            raise ValueError(
                f"{column!r} is a text, and there is no 'prompt' that it answers: a row has to be such as "
                f"{_EXAMPLE}"
            )
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list) and value:
        return list(value)
    raise ValueError(f"{column!r} has to be a text or a list of messages, not {shown(value)}")


def _margin(value: object) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"'margin' has to be a number, not {shown(value)}")
    if value < 0:
        raise ValueError(f"'margin' is {value:g}: below 0 the rejected one would be ahead")
    return float(value)


def _aspect(value: object) -> str:
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError(
            f"'aspect' has to be a name of letters, digits, _ and -, such as \"polite\", not {shown(value)}"
        )
    return value


def heldout_split(
    pairs: Sequence[tuple[str, PreferencePair]], share: float, seed: int
) -> tuple[list[tuple[str, PreferencePair]], list[tuple[str, PreferencePair]]]:
    """The pairs to train on and those held out, some `share` of them; a prompt is on one side only."""
    sides: tuple[list[tuple[str, PreferencePair]], list[tuple[str, PreferencePair]]] = ([], [])
    for name, pair in pairs:
        digest = hashlib.sha256(f"{seed}/{pair.prompt_digest}".encode()).digest()
        sides[int.from_bytes(digest[:8], "big") < share * 2**64].append((name, pair))
    return sides


def anchors(
    pairs: Sequence[tuple[str, PreferencePair]], scores: Sequence[tuple[float, float]]
) -> "tuple[Anchor, ...]":
    """Conversations of words alone with their scores, both of each pair, as anchors of a reward model."""
    from trainer.reward_scores import Anchor

    found: list[Anchor] = []
    for (_, pair), both in zip(pairs, scores, strict=True):
        for chat, score in zip((pair.chosen, pair.rejected), both, strict=True):
            plain = all(m.role != "tool" and not m.tool_calls for m in chat.messages)
            if plain and not chat.tools and len(found) < MOST_ANCHORS:
                said = tuple({"role": m.role, "content": m.content} for m in chat.messages)
                found.append(Anchor(said, score))
    return tuple(found)


def preference_tokens(
    pairs: Sequence[tuple[str, PreferencePair]],
    renderer: "Renderer",
    max_tokens: int,
    heads: Heads = ONE_HEAD,
) -> "list[Preference]":
    """Return pairs as token ids. max_tokens: of both conversations, what a micro-batch holds. heads: of the
    reward model. Raises ConfigError."""
    from trainer.reward_model import Preference

    found: list[Preference] = []
    for name, pair in pairs:
        chosen, rejected = (_ids(name, chat, renderer) for chat in (pair.chosen, pair.rejected))
        try:
            weights = heads.compared(pair.aspect)
        except ValueError as error:
            raise ConfigError(f"--data: {name}: 'aspect': {error}") from None
        one = Preference(name, chosen, rejected, pair.margin, pair.aspect, weights)
        if one.num_tokens > max_tokens:
            raise ConfigError(
                f"--data: {name}: the {one.num_tokens} tokens of its two conversations are more than the "
                f"{max_tokens} of --micro-batch-tokens: raise that, or leave the row out"
            )
        found.append(one)
    return found


def _ids(name: str, chat: Chat, renderer: "Renderer") -> tuple[int, ...]:
    first = next(i for i, m in enumerate(chat.messages) if m.role == "assistant")
    try:
        ids, _ = renderer.demonstration(chat.messages[:first], chat.tools, chat.messages[first:])
    except Exception as error:  # a template of others can fail in any way
        why = str(error) if isinstance(error, ValueError) else told(error)
        raise ConfigError(f"--data: {name}: {why}") from None
    return tuple(ids)
