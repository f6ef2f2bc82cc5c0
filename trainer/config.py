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
    """AdamW with linear warm-up and global gradient-norm clipping."""

    lr: PositiveFloat = 1e-6
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    warmup_steps: int = Field(default=0, ge=0)


class LearnerConfig(Section):
    """The training side.

    row_tokens: length of a packed row; has to hold the longest trajectory.
    micro_batch_rows: rows of one forward and backward pass.
    cpus, gpus: what the learner's actor asks Ray for (0 CPUs: it shares the engines' cores).
    """

    dtype: Dtype = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    row_tokens: PositiveInt = 256
    micro_batch_rows: PositiveInt = 16
    threads: PositiveInt | None = None
    cpus: float = Field(default=0, ge=0)
    gpus: float = Field(default=0, ge=0)
    advantage: AdvantageName = "grpo"
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()


class SftConfig(Section):
    """Cold start: `steps` updates over a fixed set of `demonstrations` per environment."""

    demonstrations: PositiveInt = 1000
    steps: PositiveInt = 100
    batch_size: PositiveInt = 32
    optim: OptimConfig = OptimConfig(lr=1e-3)
