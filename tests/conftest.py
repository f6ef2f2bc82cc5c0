"""Fixtures that several tests share: tiny checkpoints of both families, and their renderer.

The checkpoints' weights are random and made sharper than a fresh policy's: with small weights attention
is flat and every expert alike, and a wrong position or a wrong expert changes less than rounding.
"""

import ast
import gc
import itertools
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dorado_command import Command
from hypothesis import settings
from kept_policies import kept

pytest_plugins = ["isolation", "markers", "chat_server"]

# Read by `datasets` when it is imported: its cache goes away with the session.
_CACHE = tempfile.TemporaryDirectory(prefix="dorado-tests-", ignore_cleanup_errors=True)
os.environ["HF_DATASETS_CACHE"] = _CACHE.name

settings.register_profile("dorado", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("dorado")

# Several workers share the cores: their threads would wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

FAMILIES = ("longcat_flash", "qwen3_moe")
SHARPER = 2.0


def _undisturbed(parse: Callable[..., ast.AST]) -> Callable[..., ast.AST]:
    """`ast.parse`, alone and without garbage collection.

    Before Python 3.11.8 it raises SystemError where a second parse begins within the first: in another
    thread, or in garbage that is collected meanwhile and prints a traceback (its carets are found by
    parsing). pytest parses a test's file to show its failure.
    """
    alone = threading.RLock()

    def parse_alone(*arguments: Any, **options: Any) -> ast.AST:
        with alone:
            collects = gc.isenabled()
            gc.disable()
            try:
                return parse(*arguments, **options)
            finally:
                if collects:
                    gc.enable()

    return parse_alone


# A shell's job in the background ignores the one, nohup's the other, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

if sys.version_info < (3, 11, 8):
    ast.parse = _undisturbed(ast.parse)  # pyright: ignore


def pytest_collection_finish() -> None:
    """Leave what the test files imported out of every later collection: NiceGUI's simulation alone collects
    twice a test, a second each with torch and its like loaded."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """A small corpus of all built-in environments."""
    from fakes import ENVS

    from rl.cold_start import corpus
    from rl.config import InitConfig, ModelConfig, RunConfig
    from rl.env_table import EnvTable

    found: list[str] = []
    for id in ENVS:
        config = RunConfig(name="t", model=ModelConfig(init=InitConfig()), env=(EnvTable(id=id),))
        found += itertools.islice(corpus(config), 300)
    return found


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> dict[str, Path]:
    """A tiny sharp checkpoint of each family."""
    import torch

    from trainer.policy import load_policy
    from trainer.small.init_model import init_checkpoint
    from trainer.weights import write_checkpoint

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("checkpoints")
    for family in FAMILIES:
        init_checkpoint(root / family, family=family, preset="tiny", corpus=texts, seed=1)
        model = load_policy(root / family, torch.float32)
        with torch.random.fork_rng():
            torch.manual_seed(2)
            sharpen(model)
        write_checkpoint(model, root / family, torch.float32)
    return {family: root / family for family in FAMILIES}


def sharpen(model: Any) -> None:
    """Scale every matrix, and give the router's choice a bias where the family has one."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= SHARPER
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(std=0.05)


@pytest.fixture(scope="session")
def checkpoint(checkpoints: dict[str, Path]) -> Path:
    """One tiny checkpoint, where the family does not matter."""
    return checkpoints["longcat_flash"]


@pytest.fixture(scope="session", params=FAMILIES)
def family_checkpoint(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Path:
    """The tiny checkpoint of each family in turn."""
    return checkpoints[request.param]


@pytest.fixture(scope="session")
def renderer(checkpoint: Path):
    """The renderer of our own tokenizer and chat template."""
    from rollout.renderer import Renderer

    return Renderer(checkpoint, "longcat")


SFT = """
name = "sft"
model = { init = {} }
wandb = { enabled = false }
episode = { max_turns = 3, max_tokens = 128 }
learner = { micro_batch_tokens = 4096 }
sft = { demonstrations = 200, steps = 70, optim = { lr = 2e-3, warmup_steps = 10 } }
[[env]]
id = "calculator"
"""


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A trained policy of LongCat-Flash's family that writes calculator calls, most of the time."""
    folder = tmp_path_factory.mktemp("policy")
    (folder / "sft.toml").write_text(SFT, encoding="utf-8")

    def make(made: Path) -> None:
        code, output = Command(folder, "sft", "sft.toml", "--out", str(made)).wait()
        assert code == 0, output

    return kept(pytestconfig.cache, SFT, make, folder / "policy")
