"""`StepResult`: the outcome of one optimizer update, plain data that can leave the learner's process."""

from dataclasses import dataclass, field

from trainer.sample import TokenScores


@dataclass(frozen=True)
class StepResult:
    """The outcome of one optimizer update, such as `StepResult({"loss/loss": 0.1}, 2, [[0.5, 0.5, 0.0]])`.

    metrics: by name. computing_experts: how many experts of a layer compute, the first ones; 0 for a policy
    without a router. expert_loads: per layer, the share of tokens that chose each expert. token_scores: one
    per sample; empty where `learner.record_tokens` is off, and where they stay in the learner's process.
    """

    metrics: dict[str, float]
    computing_experts: int = 0
    expert_loads: list[list[float]] = field(default_factory=list)
    token_scores: list[TokenScores] = field(default_factory=list)
