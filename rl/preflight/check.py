"""`check_run`: all that `--dry-run` looks at after reading the file, before anything starts.

In: a run's settings. Out: nothing, or a ConfigError with one sentence, for the first thing that cannot work
here: plugins and their rows, the policy, judges, rewards, engines, trackers, the cluster.
"""

import os
from pathlib import Path

import psutil

from envs.process_end import ends_refused
from rl.cold_start import kept_checkpoint
from rl.config import RunConfig
from rl.config_file import ConfigError
from rl.nodes.address import silent_address
from rl.nodes.cpus import usable_cpus
from rl.objective_check import check_objective
from rl.plugin_check import check_plugins
from rl.preflight.environments import check_experts, check_rewards, check_rows, check_splits
from rl.preflight.models import check_adapters, check_model_folder, check_models
from rl.preflight.settings import check_engine_arguments, check_settings
from rl.preflight.tokenizer import check_own_tokenizer
from rl.record.teachers import check_teachers
from rl.tracker_config import missing

# Memory of an actor that does nothing yet.
ACTOR_MIB = 100


@ends_refused()
def check_run(config: RunConfig) -> None:
    """Raise ConfigError with one sentence for the first thing that cannot work."""
    check_plugins(config.all_envs)
    for table in config.all_envs:
        env = table.make()
        trained = table in config.env
        check_rows(table, env, ("train", "heldout") if trained else ("heldout",))
    if config.model.path is not None:
        check_model_folder(Path(config.model.path), trained=True)
    check_adapters(config)
    check_experts(config)
    check_objective(config)
    check_models(config)
    check_rewards(config.env)
    check_rewards(config.eval.env, "eval.env")
    check_splits(config)
    check_settings(config)
    check_engine_arguments(config.engine.vllm)
    for key, sentence in missing(config.trackers, config.notify):
        raise ConfigError(f"{key}: {sentence}")
    _check_writable(Path(config.runs_dir))
    if config.cluster.address == "local":
        _check_machine(config)
    elif why := silent_address(config.cluster.address):
        raise ConfigError(f"cluster.address: {why}")
    if config.model.path is not None:
        folder = Path(config.model.path)
        check_own_tokenizer(config, folder, "model.path")
    begins = config.model.path or (config.model.init and kept_checkpoint(config))
    check_teachers(config, Path(begins) if begins else None)


def _check_writable(runs_dir: Path) -> None:
    there = next(p for p in (runs_dir.absolute(), *runs_dir.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"runs_dir: {runs_dir} cannot be written to")


def _check_machine(config: RunConfig) -> None:
    learner = config.learner
    rollout, room = config.rollout, psutil.virtual_memory().total
    for key, count in (("hosts", rollout.hosts), ("controllers", rollout.controllers)):
        if count * ACTOR_MIB * 2**20 > room:
            raise ConfigError(
                f"rollout.{key}: {count} processes of at least {ACTOR_MIB} MiB do not fit the memory of this "
                f"machine, {room / 2**30:.0f} GiB"
            )
    wanted = config.asked("CPU")
    if wanted > usable_cpus():
        raise ConfigError(
            f"engine.count: {config.engine.count} engines of {config.engine.cpus:g} CPU and a learner "
            f"of {learner.ranks * learner.cpus:g} ask for {wanted:g} CPUs, this machine has {usable_cpus()}"
        )
    if config.engine.device == "cuda" or learner.device == "cuda":
        import torch

        gpus = torch.cuda.device_count()
        needed = config.asked("GPU")
        if needed > gpus:
            raise ConfigError(
                f"engine.gpus: engines and learner ask for {needed:g} GPUs, this machine has {gpus}"
            )
    if not Path(config.cluster.weights_dir).is_dir():
        raise ConfigError(
            f"cluster.weights_dir: the folder {config.cluster.weights_dir} does not exist"
        )
