"""Settings of the learner: objective, optimizer, batch shape. Light: no torch here."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Dtype = Literal["float32", "bfloat16"]
LossName = Literal["longcat", "grpo"]
AdvantageName = Literal["grpo", "dr_grpo"]


class Section(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LossConfig(Section):
    """The objective. The reports do not state LongCat's values; these are the usual ones.

    clip_neg_low, clip_pos_high: the ratio is clipped to [1 - clip_neg_low, 1 + clip_pos_high].
    clip_neg_high: cap of the ratio where the advantage is negative (dual clip).
    tis_cap: cap C of the truncated importance weight between learner and engine; inf turns it off.
    max_completion_tokens: T_max, the constant denominator of a trajectory's sum over tokens.
    behaviour: whose log-probs the ratio's denominator is: the `learner`'s, computed again with the
    weights that wrote the token (LongCat), or the `engine`'s as they came.
    """

    kind: LossName = "longcat"
    clip_neg_low: PositiveFloat = 0.2
    clip_pos_high: PositiveFloat = 0.28
    clip_neg_high: PositiveFloat = 3.0
    tis_cap: PositiveFloat = 2.0
    max_completion_tokens: PositiveInt = 128
    behaviour: Literal["learner", "engine"] = "learner"


class OptimConfig(Section):
    """AdamW with global gradient-norm clipping; the rate warms up linearly over `warmup_steps` and,
    with `decay_steps`, falls linearly to 0 at that step."""

    lr: PositiveFloat = 1e-6
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    warmup_steps: int = Field(default=0, ge=0)
    decay_steps: int = Field(default=0, ge=0)

    def lr_at(self, step: int) -> float:
        """The learning rate of update `step` (the first is 0)."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        cold = max(0.0, 1 - step / self.decay_steps) if self.decay_steps else 1.0
        return self.lr * min(warm, cold)


class LearnerConfig(Section):
    """The training side.

    row_tokens: length of a packed row; has to hold the longest trajectory.
    micro_batch_rows: rows of one forward and backward pass.
    cpus, gpus: what the learner's actor asks Ray for (0 CPUs: it shares the engines' cores).
    deterministic: the same samples give the same losses to the bit, on one machine with the same threads.
    """

    dtype: Dtype = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    row_tokens: PositiveInt = 256
    micro_batch_rows: PositiveInt = 16
    threads: PositiveInt | None = None
    deterministic: bool = False
    cpus: float = Field(default=0, ge=0)
    gpus: float = Field(default=0, ge=0)
    advantage: AdvantageName = "grpo"
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()


class SftConfig(Section):
    """Cold start: `steps` updates over a fixed set of `demonstrations` per environment.

    slip: share of the demonstrator's tool calls that go wrong (another tool than the right one, or
    giving up), since people and earlier models err too. Imitation learns the errors with the rest.
    """

    demonstrations: PositiveInt = 1000
    steps: PositiveInt = 100
    batch_size: PositiveInt = 32
    slip: float = Field(default=0.0, ge=0, lt=1)
    optim: OptimConfig = OptimConfig(lr=1e-3)
