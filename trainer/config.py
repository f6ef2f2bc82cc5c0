"""Settings of the learner: objective, optimizer, batch shape. Light: no torch here."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from trainer.families.registry import adapter_targets
from trainer.section import Section, one_of

Dtype = Literal["float32", "bfloat16"]
LossName = Literal[
    "longcat",
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
    "rloo",
    "reinforce_pp",
    "ppo",
    "hispo",
    "decoupled_ppo",
]
AdvantageName = Literal["grpo", "dr_grpo", "rloo", "reinforce_pp", "gae"]
CorrectionName = Literal["none", "tis", "icepop", "mis"]

# What the paper of a loss puts into it, where the configuration does not say otherwise.
USUAL_ADVANTAGE: dict[LossName, AdvantageName] = {
    "longcat": "grpo",
    "grpo": "grpo",
    "dr_grpo": "dr_grpo",
    "dapo": "grpo",
    "gspo": "grpo",
    "cispo": "grpo",
    "rloo": "rloo",
    "reinforce_pp": "reinforce_pp",
    "ppo": "gae",
    "hispo": "grpo",
    "decoupled_ppo": "reinforce_pp",
}


class ClipConfig(Section):
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]: PPO's epsilon on both sides."""

    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2


class DapoConfig(ClipConfig):
    """Clip-higher, arXiv 2503.14476, section 4.1."""

    clip_high: PositiveFloat = 0.28


class GspoConfig(ClipConfig):
    """Bounds of the sequence ratio, which is a geometric mean: arXiv 2507.18071, section 5.1."""

    clip_low: PositiveFloat = 3e-4
    clip_high: PositiveFloat = 4e-4


class CispoConfig(Section):
    """max_ratio: cap of the ratio that weighs a token. MiniMax-M1 (arXiv 2506.13585) states none; this one
    is of the range that ScaleRL (arXiv 2510.13786) found good."""

    max_ratio: PositiveFloat = 5.0


class PpoConfig(ClipConfig):
    """PPO's epsilon, the critic's loss and GAE's horizon.

    value_clip: the value moves at most so far from the behaviour version's before its error stops
    counting. value_weight: the value loss's weight beside the policy's. gamma, lam: GAE's discount and
    lambda, per turn.
    """

    value_clip: PositiveFloat = 0.2
    value_weight: PositiveFloat = 0.5
    gamma: float = Field(default=1.0, ge=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)


class LongcatConfig(Section):
    """Triplet clipping. The report states no values; these are the usual ones.

    clip_neg_low, clip_pos_high: the ratio is clipped to [1 - clip_neg_low, 1 + clip_pos_high].
    clip_neg_high: cap of the ratio where the advantage is negative (dual clip).
    """

    clip_neg_low: PositiveFloat = 0.2
    clip_pos_high: PositiveFloat = 0.28
    clip_neg_high: PositiveFloat = 3.0


class HispoConfig(LongcatConfig):
    """Triplet clipping and two masks of the gap between learner and engine; no values are published.

    sequence_delta: a sample is left out where the geometric mean of its ratios is so far from 1.
    token_delta: a token is left out where its own ratio is so far from 1.
    """

    sequence_delta: PositiveFloat = 0.01
    token_delta: PositiveFloat = 0.5


class TisConfig(Section):
    """cap: the weight's upper bound C; inf takes it away."""

    cap: PositiveFloat = 2.0


class IcepopConfig(Section):
    """low, high: a token whose weight is outside is left out."""

    low: PositiveFloat = 0.5
    high: PositiveFloat = 5.0


class MisConfig(Section):
    """low, high: a sample whose weight, the geometric mean of its tokens', is outside is left out."""

    low: PositiveFloat = 0.99
    high: PositiveFloat = 1.01


class LossConfig(Section):
    """The objective: a loss, each with settings of its own, and a correction of the engine's log-probs.

    max_completion_tokens: T_max, the constant denominator of a trajectory's sum over tokens (`longcat`,
    `dr_grpo`, `hispo`).
    behaviour: whose log-probs the ratio's denominator is: the `learner`'s, computed again with the
    weights that wrote the token (LongCat), or the `engine`'s as they came.
    correction: of the gap between learner and engine; where it is missing, `tis` for `longcat` and `none`
    for the others.
    """

    kind: LossName = "longcat"
    max_completion_tokens: PositiveInt = 128
    behaviour: Literal["learner", "engine"] = "learner"
    correction: CorrectionName = "tis"
    longcat: LongcatConfig = LongcatConfig()
    grpo: ClipConfig = ClipConfig()
    dr_grpo: ClipConfig = ClipConfig()
    dapo: DapoConfig = DapoConfig()
    gspo: GspoConfig = GspoConfig()
    cispo: CispoConfig = CispoConfig()
    reinforce_pp: ClipConfig = ClipConfig()
    ppo: PpoConfig = PpoConfig()
    hispo: HispoConfig = HispoConfig()
    decoupled_ppo: ClipConfig = ClipConfig()
    tis: TisConfig = TisConfig()
    icepop: IcepopConfig = IcepopConfig()
    mis: MisConfig = MisConfig()

    @model_validator(mode="before")
    @classmethod
    def _usual_correction(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        own = given.get("kind", "longcat") == "longcat" and given.get("behaviour") != "engine"
        return {"correction": "tis" if own else "none", **given}

    @property
    def unused(self) -> set[str]:
        """Sections of losses and corrections that were not chosen."""
        sections = {name for name, value in self if isinstance(value, Section)}
        return sections - {self.kind, self.correction}

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name not in self.unused}

    @model_validator(mode="after")
    def _makes_sense(self) -> "LossConfig":
        for name, value in self:
            if name in self.unused and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"[{name}] is set, and nothing reads it: kind is {self.kind!r}, the correction is "
                    f"{self.correction!r}"
                )
        if self.behaviour == "engine" and self.correction != "none":
            raise ValueError(
                f'correction {self.correction!r} needs behaviour = "learner": with the engine\'s '
                "log-probs as behaviour there is no gap to correct"
            )
        if self.kind == "hispo" and (self.behaviour == "engine" or self.correction != "none"):
            raise ValueError(
                'kind "hispo" masks and weighs the gap between learner and engine itself: it needs '
                'behaviour = "learner" and correction = "none"'
            )
        for name in ("icepop", "mis"):
            bounds = getattr(self, name)
            if bounds.low >= bounds.high:
                raise ValueError(
                    f"{name}.low ({bounds.low:g}) has to be below {name}.high ({bounds.high:g})"
                )
        return self


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


class RouterConfig(Section):
    """What steers the experts' load, and how the engine's choices are used (LongCat-Flash, arXiv 2509.01322).

    replay: the learner repeats the expert choices that the engine made (arXiv 2510.11370).
    experts_per_token: K_e, how many experts with computation a token should have on average; by default
    in proportion to the experts that there are.
    bias_rate: mu of the bias controller (equation 2), 0 for none. bias_decay_steps: updates in which it falls
    to 0, 0 for a constant one. Both losses and the controller are at work in a cold start too.
    balance_weight, balance_groups: alpha and D of the device-level balance loss (equations 3 to 5).
    z_weight: lambda of the hidden z-loss.
    """

    replay: bool = False
    experts_per_token: PositiveFloat | None = None
    bias_rate: float = Field(default=0.0, ge=0)
    bias_decay_steps: int = Field(default=0, ge=0)
    balance_weight: float = Field(default=0.0, ge=0)
    balance_groups: PositiveInt = 1
    z_weight: float = Field(default=0.0, ge=0)


# Layers that could have an adapter, and why they have none.
_NO_ADAPTER = {
    "kv_b_proj": "vLLM multiplies its weight into queries and outputs, past any adapter",
    "experts": "adapters on experts are not written here",
    "gate_up_proj": "name gate_proj and up_proj",
}


class LoraConfig(Section):
    """Train low-rank adapters, and leave the policy's own weights as they are (LoRA, arXiv 2106.09685).

    rank, alpha: a layer computes with W + (alpha / rank) B A. targets: the linear layers that get an adapter,
    by the last part of their name; experts and the router have none.
    """

    rank: int = Field(ge=1, le=512)
    alpha: PositiveFloat
    targets: tuple[Annotated[str, one_of(adapter_targets)], ...] = Field(min_length=1)

    @field_validator("targets", mode="before")
    @classmethod
    def _has_adapter(cls, given: Any) -> Any:
        for name in given if isinstance(given, list | tuple) else ():
            if name in _NO_ADAPTER:
                possible = ", ".join(adapter_targets())
                raise ValueError(
                    f"{name!r} cannot be one: {_NO_ADAPTER[name]}; possible are {possible}"
                )
        return given


class LearnerConfig(Section):
    """The training side.

    dtype: of the products and of the weights they use; master weights and optimizer state are float32.
    micro_batch_tokens: tokens of one forward and backward pass; has to hold the longest trajectory.
    ranks: processes, each with a device of its own, over which the policy is sharded (FSDP2); a cold start
    has one. expert_parallel: so many neighbouring ranks share out the routed experts among them. Divides
    `ranks` and the number of experts.
    cpus, gpus: what each rank's actor asks Ray for (0 CPUs: it shares the engines' cores).
    advantage: where it is missing, that of the loss's paper.
    recompute: keep only each layer's input and compute the rest again in the backward pass: less memory,
    about a third more work. compile: torch.compile for what is not a product (norms, activations, rotary
    embedding, log-probs); on CPU it needs a C++ compiler, and some ten seconds the first time.
    lora: adapters to train in place of the weights; where it is missing, all weights are trained.
    deterministic: the same samples give the same losses to the bit, on one machine with the same threads.
    record_tokens: keep what each update computed of each token it trained on (log-prob, entropy, advantage)
    in the run folder, some 30 bytes a token.
    """

    dtype: Dtype = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    micro_batch_tokens: PositiveInt = 4096
    threads: PositiveInt | None = None
    recompute: bool = False
    compile: bool = False
    deterministic: bool = False
    record_tokens: bool = True
    ranks: PositiveInt = 1
    expert_parallel: PositiveInt = 1
    cpus: float = Field(default=0, ge=0)
    gpus: float = Field(default=0, ge=0)
    advantage: AdvantageName = "grpo"
    loss: LossConfig = LossConfig()
    router: RouterConfig = RouterConfig()
    optim: OptimConfig = OptimConfig()
    lora: LoraConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _usual_advantage(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        loss = given.get("loss", {})
        kind = loss.kind if isinstance(loss, LossConfig) else None
        if isinstance(loss, dict):
            kind = loss.get("kind")
        usual = [advantage for name, advantage in USUAL_ADVANTAGE.items() if name == kind]
        return {"advantage": usual[0], **given} if usual else given

    @model_validator(mode="after")
    def _makes_sense(self) -> "LearnerConfig":
        if (self.advantage == "gae") != (self.loss.kind == "ppo"):
            raise ValueError(
                f"advantage {self.advantage!r} does not go with loss.kind {self.loss.kind!r}: "
                '"gae" needs the critic of "ppo", and "ppo" needs "gae"'
            )
        if self.ranks % self.expert_parallel:
            raise ValueError(
                f"expert_parallel ({self.expert_parallel}) has to divide ranks ({self.ranks})"
            )
        if self.device == "cuda" and self.ranks > 1 and self.gpus > 1:
            raise ValueError(
                f"gpus ({self.gpus:g}) is of each of the {self.ranks} ranks, and a rank uses one GPU"
            )
        if self.lora is not None and self.ranks > 1:
            raise ValueError(
                f"ranks ({self.ranks}) shard all weights, and [lora] trains adapters in one process: "
                "leave one of the two out"
            )
        if self.lora is not None and self.router.bias_rate:
            raise ValueError(
                "router.bias_rate moves the router's bias, and with [lora] engines get adapters only: "
                "leave one of the two out"
            )
        return self


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
