"""Settings of the learner: objective, optimizer, batch shape. Light: no torch here."""

import math
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from trainer.advantage import BATCH_ADVANTAGES, CRITIC_ADVANTAGES, DISTILL, advantage_names
from trainer.critic_config import CriticConfig
from trainer.distil_config import DistilConfig
from trainer.families.registry import adapter_targets
from trainer.loss import LOSSES, loss_of
from trainer.objective_config import LossConfig, UpdatesConfig
from trainer.section import Section, one_of
from trainer.turn_advantage import BATCH_TURN_ADVANTAGES

Dtype = Literal["float32", "bfloat16"]
Momentum = Annotated[float, Field(ge=0, lt=1)]
AdvantageName = Annotated[str, one_of(advantage_names, own=True)]


class OptimConfig(Section):
    """AdamW with global gradient-norm clipping; the rate warms up linearly over `warmup_steps` and,
    with `decay_steps`, falls linearly to 0 at that step. All updates on a step's batch have its rate."""

    lr: PositiveFloat = 1e-6
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
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
    """Settings that steer the experts' load, and how the engine's choices are used (LongCat-Flash, arXiv
    2509.01322).

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
    has ranks of its own. expert_parallel: so many neighbouring ranks share out the routed experts among
    them. Divides `ranks` and the number of experts.
    cpus, gpus: what each rank's actor asks Ray for (0 CPUs: it shares the engines' cores).
    advantage: where it is missing, that of the loss's paper.
    credit: what an advantage is of: the whole `trajectory`, or each `turn` by the rewards from it on
    (`trainer.turn_advantage`); with a critic it is of turns anyway. discount: of those rewards, per turn.
    critic: of a loss that trains one. distill: the teachers of advantage `distill`.
    normalise: advantages to mean 0 and standard deviation 1 over the tokens of the batch, or of each
    environment. float32_head: logits are products in float32 (MiniMax-M1, arXiv 2506.13585, section 3.2), of
    a head that has the values of `dtype`; with float32 it changes nothing.
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
    float32_head: bool = False
    recompute: bool = False
    compile: bool = False
    deterministic: bool = False
    record_tokens: bool = True
    ranks: PositiveInt = 1
    expert_parallel: PositiveInt = 1
    cpus: float = Field(default=0, ge=0)
    gpus: float = Field(default=0, ge=0)
    advantage: AdvantageName = "grpo"
    credit: Literal["trajectory", "turn"] = "trajectory"
    discount: float = Field(default=1.0, ge=0, le=1)
    normalise: Literal["none", "batch", "environment"] = "none"
    loss: LossConfig = LossConfig()
    critic: CriticConfig = CriticConfig()
    distill: DistilConfig | None = None
    updates: UpdatesConfig = UpdatesConfig()
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
        usual = LOSSES[kind].advantage if isinstance(kind, str) and kind in LOSSES else None
        return given if usual is None else {"advantage": usual, **given}

    @model_validator(mode="after")
    def _makes_sense(self) -> "LearnerConfig":
        if (self.advantage in CRITIC_ADVANTAGES) != loss_of(self.loss.kind).critic:
            advantages = " or ".join(f'"{name}"' for name in CRITIC_ADVANTAGES)
            losses = " or ".join(f'"{name}"' for name, loss in LOSSES.items() if loss.critic)
            raise ValueError(
                f"advantage {self.advantage!r} does not go with loss.kind {self.loss.kind!r}: "
                f"{advantages} needs the critic of {losses}, and {losses} needs {advantages}"
            )
        if self.critic != CriticConfig() and not loss_of(self.loss.kind).critic:
            losses = " or ".join(f'"{name}"' for name, loss in LOSSES.items() if loss.critic)
            raise ValueError(
                f"[critic] is set, and loss.kind {self.loss.kind!r} trains none: leave it out, or take "
                f"{losses}"
            )
        if fault := self._wrong_distillation() or self._wrong_credit():
            raise ValueError(fault)
        kl = self.loss.kl
        if kl is not None and kl.place == "reward" and self.advantage in CRITIC_ADVANTAGES:
            raise ValueError(
                f'loss.kl.place is "reward", and advantage {self.advantage!r} is estimated before the KL is '
                'known: set place = "loss"'
            )
        if kl is not None and kl.place == "reward" and self.loss.kind == "gspo":
            raise ValueError(
                'loss.kl.place is "reward", where each token has the KL that it leads to, and the one ratio '
                'of loss.kind "gspo" moves all tokens of a sample alike: set place = "loss"'
            )
        if kl is not None and kl.reference != "start" and self.lora is not None:
            raise ValueError(
                f"loss.kl.reference ({kl.reference}) is a whole policy, and with [lora] the adapters alone "
                'are held twice: set "start", which is the policy without them'
            )
        if self.updates.count > 1 and not loss_of(self.loss.kind).ratio:
            raise ValueError(
                f"[updates] asks for {self.updates.count} updates on a batch, and loss.kind "
                f"{self.loss.kind!r} has no ratio: from the second on it would take the batch for the "
                "present policy's"
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

    @property
    def reward_advantage(self) -> AdvantageName:
        """The advantage that rewards give: with teachers the outcome's, `distill` where rewards give none."""
        if self.distill is not None and self.distill.outcome is not None:
            return self.distill.outcome
        return self.advantage

    def _wrong_distillation(self) -> str:
        """The sentence on teachers that have no effect or are missing, "" where all is well."""
        if (self.advantage == DISTILL) != (self.distill is not None):
            return (
                f'advantage "{DISTILL}" and [distill], which names the teachers, go together: '
                f"advantage is {self.advantage!r}, and [distill] is "
                + ("missing" if self.distill is None else "there")
            )
        if self.distill is None:
            return ""
        if self.loss.kind == "gspo":
            return (
                'advantage "distill" is of tokens, and takes no effect with loss.kind "gspo", whose one '
                "ratio moves all tokens of a sample alike: take another loss"
            )
        if self.distill.outcome is None and (self.normalise != "none" or self.credit == "turn"):
            key = "normalise" if self.normalise != "none" else "credit"
            return (
                f"{key} is of the rewards' advantage, and [distill] adds none: set distill.outcome"
            )
        return ""

    def _wrong_credit(self) -> str:
        """The sentence on a credit that takes no effect, "" where it does."""
        if self.credit == "trajectory":
            if self.discount == 1:
                return ""
            return (
                f"discount ({self.discount:g}) is of rewards from turn to turn, and nothing reads it: it "
                'needs credit = "turn"; with a critic it is loss.ppo.gamma'
            )
        if self.reward_advantage in CRITIC_ADVANTAGES:
            return (
                f'credit "turn" has nothing to add to advantage {self.reward_advantage!r}, which is of turns '
                "already: leave it out; its discount is loss.ppo.gamma"
            )
        if (
            self.reward_advantage in BATCH_ADVANTAGES
            and self.reward_advantage not in BATCH_TURN_ADVANTAGES
        ):
            return f'advantage {self.reward_advantage!r} is of trajectories only: leave credit = "turn" out'
        if self.loss.kind == "gspo":
            return (
                'credit "turn" takes no effect with loss.kind "gspo", whose one ratio moves all tokens of '
                "a sample alike: leave it out, or take another loss"
            )
        return ""

    @property
    def turn_discount(self) -> float | None:
        """The discount per turn where turns have advantages of their own, else None."""
        return self.discount if self.credit == "turn" else None


class SftConfig(Section):
    """Supervised training: a cold start on a fixed set of `demonstrations` per environment, or on chats.

    steps: updates. epochs: passes over the data, in place of steps.

    slip: share of the demonstrator's tool calls that go wrong (another tool than the right one, or
    giving up), since people and earlier models err too. Imitation learns the errors with the rest.

    ranks: processes that share each update on a CPU, one thread each; 1 is this process with all its threads.
    """

    demonstrations: PositiveInt = 1000
    steps: PositiveInt = 100
    epochs: PositiveFloat | None = None
    batch_size: PositiveInt = 32
    slip: float = Field(default=0.0, ge=0, lt=1)
    ranks: PositiveInt = 1
    optim: OptimConfig = OptimConfig(lr=1e-3)

    @model_validator(mode="after")
    def _one_length(self) -> "SftConfig":
        if self.epochs is not None and self.steps != SftConfig.model_fields["steps"].default:
            raise ValueError("steps and epochs both say how long: leave one out")
        return self

    def updates(self, samples: int) -> int:
        """Return the number of updates on so many samples."""
        if self.epochs is None:
            return self.steps
        return max(1, math.ceil(self.epochs * samples / self.batch_size))
