"""The engine as an episode sees it: tokens in, tokens out. Any callable with this contract will do."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from rollout.token_ids import shared

if TYPE_CHECKING:
    from rollout.routing import Routing

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class VersionSpan:
    """Completion tokens [start, end) were written by policy version `version`."""

    version: int
    start: int
    end: int


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature: 0 always takes the most likely one. top_k: 0 for all.

    stop: texts that end a turn (the episode sees to them, an engine knows no text). stop_token_ids: tokens
    that do, beside the engine's own.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

    @property
    def cuts(self) -> dict[str, float]:
        """The settings that draw tokens from another distribution than the temperature's, by name."""
        usual = Sampling(self.temperature)
        names = ("top_p", "top_k", "min_p", "repetition_penalty")
        return {n: getattr(self, n) for n in names if getattr(self, n) != getattr(usual, n)}


@dataclass(frozen=True)
class Request:
    """One turn to generate. `id` is unique; `session` is equal for the turns of one trajectory.

    sampling: the turn's own; None: the engine's. cache: the KV cache that an engine left for it
    (`Completion.cache`), or "". num_routed: the prompt's tokens whose routing is known from earlier turns.
    begins: a segment begins, and what the session's turns before have left in a cache is not gone on with.
    """

    id: str
    session: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    cache: str = ""
    num_routed: int = 0
    sampling: Sampling | None = None
    begins: bool = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what came over a wire: requests wait by the thousand, and their prompts are long."""
        self.__dict__.update(state, prompt_ids=shared(state["prompt_ids"]))


@dataclass(frozen=True)
class Completion:
    """An engine's answer to a request; `logprobs` has one entry per token, `versions` covers all of them.

    engine: the engine's name. The end-of-turn token, where the policy wrote it, is part of `token_ids`.
    cached_tokens: tokens of the prompt that the engine did not compute, by its own count. cache_block: tokens
    of a block of its cache; prefixes are found in whole blocks. cache: a file
    with the KV cache of an interrupted request, for the engine it goes on at; the caller removes it.
    routing: the router's choices for the prompt's tokens from `Request.num_routed` on and for all of
    `token_ids` but the last, which no engine has computed; None where routing is not captured.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    engine: str = ""
    cached_tokens: int = 0
    cache_block: int = 1
    cache: str = ""
    routing: "Routing | None" = field(default=None, compare=False)

    def cut(self, count: int) -> "Completion":
        """Return its first `count` tokens, as if the policy had stopped there."""
        spans = (replace(s, end=min(s.end, count)) for s in self.versions if s.start < count)
        dropped = len(self.token_ids) - count
        routing = self.routing
        if routing is not None and dropped:
            routing = routing[: len(routing) - dropped]
        return replace(
            self,
            token_ids=self.token_ids[:count],
            logprobs=self.logprobs[:count],
            versions=tuple(spans),
            finish_reason="stop",
            routing=routing,
        )


Generate = Callable[[Request], Awaitable[Completion]]


class EngineFault(Exception):
    """An engine died, or did not answer in time: infrastructure, never the policy."""
