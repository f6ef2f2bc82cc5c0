"""A guide to the metrics: named sections, in the order in which one asks, and a line on each key.

docs/metrics.md says more. A key that no line is about has its section's line only.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Section:
    """A section of the page. pattern: of its keys; the first section whose pattern is found has a key."""

    title: str
    about: str
    pattern: str


SECTIONS = (
    Section(
        "Held-out results",
        "Tasks that are never trained on, played by one policy version; intervals cover 95 %.",
        r"^eval/",
    ),
    Section(
        "Rewards",
        "Rewards of the training tasks, and whether groups of tries differ enough to learn from.",
        r"^(reward|judge|hacking|drift)/|^rollout/.*(reward|zero_variance)|^learn/.*/advantage",
    ),
    Section(
        "Stability",
        "How far each update moves the policy, and how much of a batch still carries a gradient.",
        r"^(loss|learn|optim|parity|critic|learner|update)/",
    ),
    Section(
        "What the policy writes",
        "Length, turns, cut-off episodes and calls of the trajectories that were played.",
        r"^rollout/",
    ),
    Section("Experts", "Load of the mixture's experts, and what their routers do.", r"^router/"),
    Section(
        "Time and throughput",
        "Seconds of a step in parts, tokens per second, and weight syncs.",
        r"^(time|sync|engine|fleet|rollout_tokens)",
    ),
    Section(
        "Versions and queues",
        "Age of what is trained on, and groups that wait for the learner or are used again.",
        r"^(staleness|queue|replay|window|reuse)/",
    ),
    Section(
        "Environments and mixture",
        "Shares of the environments, breakers, retries, difficulty, noise and forecasts.",
        r"^(mix|env|tasks|forecast)/",
    ),
    Section(
        "Selection",
        "Who is trained on, against who was played and dropped, since the start of the run.",
        r"^selection/",
    ),
    Section("Others", "Keys of no other section.", ""),
)
_KEYS = (
    (
        r"^eval/.*/pass_rate$|mean_pass_rate$",
        "share of held-out tries that pass; the figure to steer by",
    ),
    (r"^eval/.*(/|_)(low|high)$", "end of the pass rate's 95 % interval"),
    (r"^eval/.*/pass_at_", "chance that one of so many tries of a task passes"),
    (r"^eval/version$", "policy version that was evaluated"),
    (
        r"^eval/faults$",
        "share of the held-out episodes that ended in a fault, and so were not judged",
    ),
    (r"^eval/lag$", "versions that the learner was ahead at the evaluation's end"),
    (r"^eval/.*/reward$", "mean total reward of held-out tries"),
    (
        r"/group_reward_std$",
        "spread of rewards within a group: what a relative advantage is made of",
    ),
    (r"/reward_std$", "spread of the rewards over trajectories"),
    (r"^rollout/.*/reward$", "mean total reward of what was played in the step"),
    (r"/zero_variance$", "share of groups whose rewards are all equal: they teach nothing"),
    (r"^reward/", "mean of one named reward, unweighted"),
    (r"^judge/.*/disagreement$", "how far the judges of an ensemble part: standard deviation"),
    (r"^judge/.*/position_bias$", "share of pairs in which both orders named the same place"),
    (r"^judge/.*/cannot_tell$", "share of a rubric's criteria that the judge could not decide"),
    (r"^judge/", "mean of a judge's number that is no reward"),
    (
        r"^hacking/.*/best_of_group$",
        "signal of a group's highest reward, less the group's mean; below 0 training lowers the signal",
    ),
    (r"^hacking/.*/correlation$", "of the reward with a signal that does not train, within groups"),
    (r"^hacking/.*/fallen$", "how far a signal that does not train is below its best window"),
    (
        r"^hacking/.*/explained",
        "share of the reward's variance within groups that is length and format",
    ),
    (r"^drift/.*/ks$", "distance of a reward model's scores from those of its training, 0 to 1"),
    (
        r"^drift/.*/anchors$",
        "how far anchors are from their scores in training; a frozen model moves none",
    ),
    (
        r"^drift/",
        "how far a reward model's scores are from those of its training, in their deviations",
    ),
    (r"^hacking/", "mean over the window of the meters of reward hacking"),
    (r"/advantage_std$", "spread of the advantages over trained tokens; 0 means no signal"),
    (r"/advantage$", "mean advantage of the trained tokens; near 0"),
    (r"^loss/loss$", "the objective; its level says little, a jump does"),
    (r"entropy$", "nats per token; falls slowly; near 0 nothing new is tried"),
    (r"grad_norm$", "norm of the gradient before clipping; a jump comes before most collapses"),
    (r"^optim/lr$", "learning rate"),
    (
        r"kl_behaviour$",
        "KL from the version that wrote the tokens; grows with staleness and step size",
    ),
    (
        r"kl_engine$",
        "KL from the engine's own log-probs; beside staleness it holds numerical differences",
    ),
    (
        r"kl_reference$",
        "KL to the reference policy, before its weight; grows as the policy leaves it",
    ),
    (r"^update/.*/kl$", "KL from the batch's start before this of its updates"),
    (
        r"^update/.*/ratio_max$",
        "largest probability ratio of a token, policy over the batch's start",
    ),
    (r"^update/made$", "updates that the batch gave"),
    (r"^update/stopped$", "1 where the KL ended the batch's updates early"),
    (r"engine_ratio_max$", "largest probability ratio of a token, policy over engine"),
    (r"ratio_max$", "largest probability ratio of a token, policy over the version that wrote it"),
    (r"/ess$", "effective sample size as a share of the tokens; 1 where all weigh alike"),
    (r"clipped|capped|masked", "share of tokens that clipping or a correction took out or bounded"),
    (r"policy_tokens$", "tokens that carried a loss"),
    (
        r"mean_abs_dlogp$",
        "difference of engine and learner on the same tokens and weights; below 0.05",
    ),
    (r"^parity/(tokens|share)$", "how much the parity is measured on"),
    (r"set_aside$", "samples or updates that were not finite"),
    (r"completion_tokens(_\w+)?$", "tokens that the policy wrote in a trajectory"),
    (r"/truncated$", "share of episodes cut off at a limit of turns or tokens"),
    (r"/turns$", "exchanges with the environment in a trajectory"),
    (r"^rollout/.*/tokens$", "all tokens of a trajectory, what it was told included"),
    (r"/malformed_calls$", "tool calls that could not be read"),
    (r"/refused_calls$", "tool calls that the environment refused"),
    (r"/faults$", "trajectories that ended in a fault that is not the policy's"),
    (r"^rollout/.*/trajectories$", "trajectories that were played in the step"),
    (r"^rollout/.*_seconds$", "seconds of a trajectory in this phase"),
    (r"load_violation$", "how far the busiest expert is above the mean"),
    (r"^time/total_seconds$", "a learner step, from the end of the one before to its own"),
    (
        r"wait_for_batch_seconds$",
        "the learner waits for rollouts: high where these are the slower side",
    ),
    (r"learner_seconds$", "forward and backward passes"),
    (r"sync_seconds$", "a weight sync, beside the next step"),
    (r"tokens_per_second$", "tokens played per second of the step"),
    (r"^staleness/", "versions between a trajectory's oldest token and the learner; bounded"),
    (r"/breaker$", "1 while an environment gets no new episodes, because too many fail"),
    (r"^forecast/.*/log_loss$", "of the forecasts of pass rates, per episode, in nats"),
    (r"^forecast/.*/log_loss_base$", "the same of a forecast that is equal for all tasks"),
    (r"^forecast/.*/calibration_error$", "mean distance of forecast and pass rate"),
    (r"^forecast/.*/known$", "share of candidates that were played before"),
    (r"^forecast/.*/forecast$", "pass rate that was expected of the groups drawn so"),
    (r"^forecast/.*/passed$", "pass rate that came of the groups drawn so"),
    (r"/noise_gap$", "pass rate of clean tasks less that of noisy ones"),
    (r"^mix/.*/asked$", "share of groups that the settings ask for"),
    (r"^mix/.*/begun$", "share of groups that were begun lately"),
    (r"^mix/.*/trained$", "share of groups that were trained on lately"),
)


@lru_cache(maxsize=10_000)
def section_of(key: str) -> Section:
    """The section of a key."""
    return next(one for one in SECTIONS if re.search(one.pattern, key))


@lru_cache(maxsize=10_000)
def about_key(key: str) -> str:
    """A line on a key; "" where none is about it."""
    return next((line for pattern, line in _KEYS if re.search(pattern, key[:300])), "")


def by_section(keys: Sequence[str]) -> dict[Section, list[str]]:
    """The keys by section, in the order of the sections; those without keys are left out."""
    found = {section: [key for key in keys if section_of(key) == section] for section in SECTIONS}
    return {section: own for section, own in found.items() if own}
