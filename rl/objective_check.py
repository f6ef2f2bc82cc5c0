"""Checks the objective before anything starts: functions of the user's own, and what it has to fit in a
run."""

from rl.config import RunConfig
from rl.config_error import ConfigError
from trainer.loss import loss_of
from trainer.own_function import BadFunction
from trainer.own_objective import own_functions


def check_objective(config: RunConfig) -> None:
    """Raise ConfigError with one sentence for the first thing that cannot work."""
    _check_longest(config)
    _check_fresh(config)
    if own_functions(config.learner):
        from trainer.own_check import check_own_functions

        try:
            check_own_functions(config.learner)
        except BadFunction as error:
            raise ConfigError(str(error)) from None


def _check_fresh(config: RunConfig) -> None:
    """A loss without a ratio takes every sample for one of the present policy."""
    kind = config.learner.loss.kind
    if not loss_of(kind).ratio and config.rules.max_staleness:
        raise ConfigError(
            f"learner.loss.kind: {kind!r} has no ratio, so every sample has to be of the present policy, and "
            f'in mode "{config.mode}" samples are up to {config.rules.max_staleness} versions old: set mode '
            '= "sync", or take a loss with a ratio, such as reinforce_pp'
        )


def _check_longest(config: RunConfig) -> None:
    """T_max of a loss that divides by it is what an episode allows."""
    if not loss_of(config.learner.loss.kind).constant_denominator:
        return
    episode, found = config.episode, config.learner.loss.max_completion_tokens
    longest = episode.longest_completion
    turn = min(episode.max_completion_tokens, longest)
    if not turn <= found <= longest:
        raise ConfigError(
            f"learner.loss.max_completion_tokens: {found} does not fit the episodes, in which a policy "
            f"writes up to {turn} tokens a turn and {longest} in all (episode.max_completion_tokens, "
            f"max_turns and max_tokens); leave it out, or set it to {longest}"
        )
