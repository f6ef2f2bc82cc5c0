"""Which rewards of a run come from reward models that know the scores of their training."""

from pathlib import Path

from reward.model_judge import SCORED
from rl.config import RunConfig
from rl.models.judges import own_weights
from rl.samples.score_drift import ScoreDrift
from trainer.reward_scores import read_scores


def score_drifts(config: RunConfig) -> list[ScoreDrift]:
    """A meter for each judge that asks one reward model with a folder, by the folder's own weights of its
    heads. Raises ValueError where the folder's scores cannot be read."""
    folders = {one.name: one.path for one in config.models if one.use == "reward" and one.path}
    found: list[ScoreDrift] = []
    for table in config.env:
        for judge in table.judge:
            if judge.id not in SCORED or len(judge.models) != 1 or judge.models[0] not in folders:
                continue
            if own_weights(judge):
                continue
            if (training := read_scores(Path(folders[judge.models[0]]))) is not None:
                window = config.hacking.window
                found.append(ScoreDrift(table.label, judge.label, training, window))
    return found
