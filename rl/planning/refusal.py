"""Refuses what `dorado plan --here` cannot know: GPUs, several ranks, adapters, other machines."""

from rl.config import RunConfig
from rl.config_error import ConfigError


def refuse(config: RunConfig) -> None:
    """Raise ConfigError for a run whose speed a CPU cannot tell."""
    devices = {"engine": config.engine.device, "learner": config.learner.device}
    for part, device in devices.items():
        if device != "cpu":
            raise ConfigError(
                f'plan --here: {part}.device is "{device}", and what is measured here is a CPU; of GPUs '
                "--trace RUN predicts from a short run that was made on them"
            )
    if config.learner.ranks > 1:
        raise ConfigError(
            f"plan --here: learner.ranks is {config.learner.ranks}, and one rank is measured: leave it "
            "out, or give a finished run as --trace RUN"
        )
    if config.learner.lora is not None:
        raise ConfigError(
            "plan --here: adapters (learner.lora) are not measured; give a finished run as --trace RUN"
        )
    if config.cluster.address != "local":
        raise ConfigError(
            f"plan --here: cluster.address is {config.cluster.address!r}, and this machine alone is measured"
        )


def refuse_sweep(*options: str) -> None:
    """Raise ConfigError where an option of the simulated sweep is given."""
    for given in filter(None, options):
        raise ConfigError(
            f"plan --here measures this machine, and {given!r} is of a simulated cluster: give one of them"
        )
