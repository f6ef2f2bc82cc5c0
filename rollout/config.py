"""Settings of the policy's acting: engines, sampling, episode limits. Light: no vllm here."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rollout.engine import Sampling

SUMMARY_PROMPT = (
    "Your context is nearly full and will be cleared. Write down all that you need to go on: what you were "
    "asked, what you have done and found, and what is left to do. Call no tool."
)


class Section(BaseModel):
    """Base of all settings but the learner's: frozen, numbers are finite, and an unknown key is an error.

    `trainer`, which imports none of our packages, has its own (`trainer.config.Section`).
    """

    # An infinite setting is written out as such, not as none.
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_no_truths(cls, value: object, info: ValidationInfo) -> object:
        """Python takes true for 1, and nobody who writes `steps = true` means that."""
        kind = cls.model_fields[info.field_name].annotation if info.field_name else None
        if takes_numbers(kind) and has_truth(value):
            raise ValueError(f"true and false are no numbers, got {str(value).lower()}")
        return value


def takes_numbers(kind: object) -> bool:
    """True if a type is made of numbers, such as `int | None` or `tuple[float, float]`, and not of truths."""
    leaves = list(_leaves(kind))
    return (int in leaves or float in leaves) and not {bool, object, Any} & set(leaves)


def has_truth(value: object) -> bool:
    """True if a value is true or false, or has one in it."""
    if isinstance(value, dict):
        return any(map(has_truth, value.values()))
    if isinstance(value, list | tuple):
        return any(map(has_truth, value))
    return isinstance(value, bool)


def _leaves(kind: object) -> Iterator[Any]:
    """The types that a type is made of."""
    if kind is Any or (isinstance(kind, type) and not get_args(kind)):
        yield kind
    for inner in get_args(kind):
        yield from _leaves(inner)


class SamplingConfig(Section):
    """How the policy's tokens are drawn, in training and, where evaluation has no own settings, there too.

    top_p, top_k (0: all), min_p: what of the distribution tokens are drawn from. repetition_penalty: divides
    the logits of tokens that are there already. stop, stop_token_ids: texts and tokens that end a turn beside
    the policy's end tokens, and stay a part of it.
    """

    temperature: PositiveFloat = 1.0
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: NonNegativeInt = 0
    min_p: float = Field(default=0.0, ge=0, lt=1)
    repetition_penalty: PositiveFloat = 1.0
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    stop_token_ids: tuple[NonNegativeInt, ...] = ()

    @property
    def record(self) -> Sampling:
        """As requests take it."""
        return Sampling(**self.model_dump())


class EnvSampling(Section):
    """How tokens of one environment's episodes are drawn; a key that is missing is the run's."""

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: NonNegativeInt | None = None
    min_p: float | None = Field(default=None, ge=0, lt=1)
    repetition_penalty: PositiveFloat | None = None
    stop: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    stop_token_ids: tuple[NonNegativeInt, ...] | None = None

    def over(self, usual: SamplingConfig) -> Sampling:
        """Return `usual` with the keys that are set here."""
        return Sampling(**{**usual.model_dump(), **self.model_dump(exclude_none=True)})


class EngineConfig(Section):
    """The vLLM engines.

    count, cpus, gpus: how many, and what each asks Ray for.
    threads: OpenMP threads of one engine on a CPU machine.
    kv_cache_gib: KV cache of one engine on a CPU machine.
    move_cache: how the KV cache of a request that is moved (mode `dora`) reaches the other engine: as a file
    in `cluster.weights_dir`, which the engines of one host share; or not at all ("none": its prefix is
    computed again). Not for engines of several processes (`tensor_parallel_size`), nor where `vllm` names
    another KV connector as `kv_transfer_config`, which then stands alone: one with a store of prefixes serves
    moved requests too, vLLM's NIXL connector hands over nothing of an aborted request.
    update: what becomes of the KV caches of running requests when the weights change under them (mode
    `in_flight`). rolling: requests go on with the older weights and are moved to the newer ones a few at a
    time, their prefixes computed again; on GPUs, and for adapters, there is one set of weights, and rolling
    is at_once. at_once: all requests wait until their prefixes are computed again. keep_cache: nothing is
    computed again, and the newer weights read keys and values of the older ones: log-probs are then not the
    learner's (`parity/mean_abs_dlogp`).
    prefill_tokens: prefixes that a step of a rolling update computes, in tokens; None: what a step takes is
    measured, and kept to a few times that of an undisturbed one.
    capture_routing: the router's choices ride with the samples. On GPUs a moved request's cache stays behind
    then, whatever `move_cache` says.
    start_seconds: until an engine has answered its first request. request_seconds: for one turn.
    max_restarts: engines that are started in place of ones that died, in a run.
    compile: of engines on a CPU, torch.compile for the model; it needs a C++ compiler. On GPUs vLLM compiles
    by itself.
    vllm: further arguments of vLLM's engine, as vLLM names them.
    """

    count: PositiveInt = 2
    cpus: float = Field(default=1, ge=0)
    gpus: float = Field(default=0, ge=0)
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_model_len: PositiveInt = 1024
    max_num_seqs: PositiveInt = 128
    threads: PositiveInt = 1
    kv_cache_gib: PositiveInt = 1
    move_cache: Literal["shared_memory", "none"] = "shared_memory"
    update: Literal["rolling", "at_once", "keep_cache"] = "at_once"
    prefill_tokens: PositiveInt | None = None
    capture_routing: bool = False
    compile: bool = False
    max_restarts: NonNegativeInt = 4
    start_seconds: PositiveFloat = 180
    request_seconds: PositiveFloat = 120
    vllm: dict[str, Any] = {}

    @field_validator("vllm")
    @classmethod
    def _finite(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name, value in given.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} has to be a finite number, not {value}")
        return given

    @model_validator(mode="after")
    def _compiles_on_a_cpu(self) -> "EngineConfig":
        if self.compile and self.device != "cpu":
            raise ValueError(
                'compile is of engines on a CPU, and device is "cuda": leave it out, on GPUs vLLM compiles '
                "by itself (vllm.enforce_eager = true: not)"
            )
        if self.compile and self.vllm.get("enforce_eager"):
            raise ValueError(
                "compile = true and vllm.enforce_eager = true exclude each other: leave one out"
            )
        given = self.vllm.get("compilation_config")
        inductor = given.get("inductor_compile_config") if isinstance(given, dict) else None
        if self.device == "cpu" and isinstance(inductor, dict) and inductor.get("max_autotune"):
            raise ValueError(
                "vllm.compilation_config.inductor_compile_config.max_autotune makes the weights a part of "
                "the compiled code, and new ones would change nothing; leave it out"
            )
        return self


class EpisodeConfig(Section):
    """Limits of one episode, and what the policy sees of it.

    max_turns: turns of the policy. max_completion_tokens: of one turn. max_tokens: of the whole
    trajectory, prompts and observations included; of each of its segments, where it has several. max_seconds:
    from its first phase to its last.
    context: what becomes of a context of more than `context_tokens` (default: five eighths of max_tokens, as
    80K of 128K; LongCat-Flash-Thinking-2601, section 3.3.2). append: nothing. summary: the policy is asked,
    by `summary_prompt`, for a summary, which is trained on like any turn; a segment begins with the opening
    and the summary. discard: a segment begins with the opening alone. hybrid: summary, and discard after
    `discard_turns` turns, after twice as many the next time, and so on.
    """

    max_turns: PositiveInt = 8
    max_completion_tokens: PositiveInt = 32
    max_tokens: PositiveInt = 256
    max_seconds: PositiveFloat = 300
    context: Literal["append", "summary", "discard", "hybrid"] = "append"
    context_tokens: PositiveInt | None = None
    discard_turns: PositiveInt | None = None
    summary_prompt: str = Field(default=SUMMARY_PROMPT, min_length=1)

    @model_validator(mode="after")
    def _contexts_fit(self) -> "EpisodeConfig":
        if self.context == "append" and self.context_tokens is not None:
            raise ValueError(
                'context_tokens is of a context that is shortened, and context is "append": leave it out, or '
                'set context to "summary", "discard" or "hybrid"'
            )
        if self.context_tokens is not None and self.context_tokens >= self.max_tokens:
            raise ValueError(
                f"context_tokens ({self.context_tokens}) leaves no room for another turn in max_tokens "
                f"({self.max_tokens}): make it smaller"
            )
        if (self.context == "hybrid") != (self.discard_turns is not None):
            raise ValueError(
                'discard_turns belongs to context = "hybrid", which needs it: after so many turns the '
                "context is discarded in place of summed up"
            )
        return self

    @property
    def context_limit(self) -> int:
        """Tokens from which on a context is shortened."""
        return self.context_tokens or self.max_tokens * 5 // 8

    @property
    def longest_completion(self) -> int:
        """Most tokens that the policy writes in one episode, over all its turns."""
        turns = self.max_turns * self.max_completion_tokens
        return min(self.max_tokens, turns) if self.context == "append" else turns
