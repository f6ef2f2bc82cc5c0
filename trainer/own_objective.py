"""Which functions of the user's own a learner's settings name, and their source for the run's record."""

import hashlib

from trainer.config import LearnerConfig
from trainer.own_function import is_own, source_of

# File of the run folder: their source as it was when the run began.
OWN_FUNCTIONS = "own_functions.json"


def own_functions(config: LearnerConfig) -> dict[str, str]:
    """The names of functions of the user's own by the setting's key."""
    named = {
        "learner.advantage": config.advantage,
        "learner.loss.kind": config.loss.kind,
        "learner.loss.correction": config.loss.correction,
    }
    return {key: name for key, name in named.items() if is_own(name)}


def own_sources(config: LearnerConfig) -> dict[str, dict[str, str]]:
    """By the setting's key: name, file, SHA-256 and text of each function's file. Raises BadFunction."""
    found: dict[str, dict[str, str]] = {}
    for key, name in own_functions(config).items():
        file, text = source_of(name)
        digest = hashlib.sha256(text.encode()).hexdigest()
        found[key] = {"name": name, "file": file, "sha256": digest, "source": text}
    return found
