"""`[[models]]`: frozen models beside the policy, by a checkpoint or an address, and what bounds their use."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from pydantic import model_validator as validator

from envs.address import http_address
from rl.env_table import BreakerConfig
from rollout.config import Section

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ServeConfig(Section):
    """How vLLM's own server serves a checkpoint, in a process of its own beside the run.

    cpus, gpus: what the service asks Ray for. threads, kv_cache_gib: on a CPU machine. vllm: further
    arguments of vLLM's server, as vLLM names them (`tensor_parallel_size`, `data_parallel_size`,
    `quantization`). start_seconds: until it answers. restarts: times that a server which has died or hangs is
    started again in a run. sleep_seconds: without a request, until it gives its GPU memory back (0: it never
    does).
    """

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    cpus: float = Field(default=0, ge=0)
    gpus: float = Field(default=0, ge=0)
    threads: PositiveInt = 1
    kv_cache_gib: PositiveInt = 1
    max_model_len: PositiveInt = 2048
    max_num_seqs: PositiveInt = 32
    start_seconds: PositiveFloat = 300
    restarts: int = Field(default=4, ge=0)
    sleep_seconds: float = Field(default=0, ge=0, allow_inf_nan=False)
    vllm: dict[str, Any] = {}

    @validator(mode="after")
    def _device(self) -> "ServeConfig":
        if (self.device == "cuda") != (self.gpus > 0):
            raise ValueError(f'gpus: {self.gpus:g} does not go with device = "{self.device}"')
        if self.sleep_seconds and self.device != "cuda":
            raise ValueError(
                "sleep_seconds: vLLM gives memory of a GPU back while it sleeps, and has none to give with "
                f'device = "{self.device}": leave it out'
            )
        return self


class ModelTable(Section):
    """One frozen model, by its `path` (a checkpoint, served beside the run) or its `url`.

    use: "chat" writes answers, "reward" scores conversations (a folder that `dorado reward train` has made),
    "score" tells the log-probs of given tokens (a teacher: `learner.distill.teacher = "model:NAME"`).
    url: of an OpenAI-compatible server, such as `http://127.0.0.1:8000/v1`. key_env: the environment variable
    that holds its key. heads: of a reward model at a url that gives several numbers, their names in order.
    model: as the server calls it (default: the first that it offers). concurrency:
    requests in progress at once. request_seconds: of one request, from when it is sent. retries: of a request
    that fails while others are answered. hold_seconds: how long a call is held while nothing is answered.
    nonsense: times that a question whose answer does not fit its schema is asked again. cache: answers that
    are kept for equal questions (0: none). max_calls, max_tokens: budget of a run, of requests that were sent
    and of tokens read and written (0: none). anchor_seconds: between two looks at a reward model's anchors.
    """

    name: str
    use: Literal["chat", "reward", "score"] = "chat"
    path: str | None = None
    url: str | None = None
    key_env: str = ""
    model: str = ""
    heads: tuple[str, ...] = ()
    concurrency: PositiveInt = 16
    request_seconds: PositiveFloat = 60
    retries: int = Field(default=3, ge=0)
    hold_seconds: PositiveFloat = 300
    nonsense: int = Field(default=2, ge=0)
    cache: int = Field(default=10_000, ge=0)
    max_calls: int = Field(default=0, ge=0)
    max_tokens: int = Field(default=0, ge=0)
    anchor_seconds: PositiveFloat = 300
    serve: ServeConfig = ServeConfig()
    breaker: BreakerConfig = BreakerConfig(faults=4, cooldown_seconds=2, max_cooldown_seconds=30)

    @field_validator("name")
    @classmethod
    def _usable(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} has to be usable as a file name")
        return name

    @validator(mode="after")
    def _one_source(self) -> "ModelTable":
        if (self.path is None) == (self.url is None):
            raise ValueError("give exactly one of path and url")
        try:
            _ = self.url is not None and http_address(self.url)
        except ValueError as error:
            raise ValueError(f"url {error}") from None
        if self.url is not None and self.serve != ServeConfig():
            raise ValueError("serve is of a checkpoint (path), and this model has a url")
        if self.use == "reward" and self.serve.sleep_seconds > self.anchor_seconds:
            raise ValueError(
                f"serve.sleep_seconds ({self.serve.sleep_seconds:g}) has to be at most anchor_seconds "
                f"({self.anchor_seconds:g}), or the anchors never let it sleep"
            )
        if self.heads and (self.use != "reward" or self.url is None):
            raise ValueError(
                'heads: they are named for a model of use "reward" at a url; a folder names its own'
            )
        if len(set(self.heads)) < len(self.heads):
            raise ValueError(f"heads: {', '.join(self.heads)} has a name twice")
        return self


def check_models(models: tuple[ModelTable, ...], asked: Mapping[str, tuple[str, ...]]) -> None:
    """Raise ValueError where a name is given twice, or a judge or a user asks a model that there is not.

    asked: by the key of a judge or a user, the names of its models.
    """
    names = [model.name for model in models]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two models are called {twice[0]!r}: give one another name")
    for key, wanted in asked.items():
        for name in wanted:
            if name not in names:
                raise ValueError(
                    f"{key}: {name!r} is none of the [[models]]; such are "
                    f"{', '.join(sorted(names)) or 'none'}"
                )
