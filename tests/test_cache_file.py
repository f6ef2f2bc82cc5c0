"""A cache as a file: written once it is asked for, and read by whoever may."""

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from rollout.cache_file import CacheFile
from rollout.config import EngineConfig
from rollout.vllm_arguments import moves_cache

IDS = tuple(range(40))
LAYOUT = "2 layers"


def layers(blocks: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(blocks, 1, 16, 8, generator=generator) for name in ("one", "two")}


@pytest.fixture
def file(tmp_path: Path) -> CacheFile:
    """A complete file: 40 tokens of version 3 in three blocks of 16."""
    made = CacheFile(tmp_path / "cache-5e")
    made.ask(3)
    assert made.accept() == 3
    made.write(IDS, layers(3, seed=1), 3, LAYOUT)
    return made


def test_nothing_is_written_that_nobody_asked_for(tmp_path):
    file = CacheFile(tmp_path / "cache-5e")
    assert file.accept() is None and not file.expected()
    file.ask(3)
    assert file.expected()
    file.withdraw()
    assert file.accept() is None and not file.expected()
    assert list(tmp_path.iterdir()) == []


def test_what_is_taken_up_is_expected_until_it_is_written_or_dropped(tmp_path):
    file = CacheFile(tmp_path / "cache-5e")
    file.ask(3)
    file.accept()
    file.withdraw()
    assert file.expected() and not file.path.exists()
    file.drop()
    assert not file.expected() and list(tmp_path.iterdir()) == []


def test_a_complete_file_is_the_only_one(file):
    assert not file.expected()
    assert list(file.path.parent.iterdir()) == [file.path]


def test_the_last_token_of_a_prompt_is_never_cached(file):
    assert file.matched((*IDS, 99, 98), 3, LAYOUT) == 40
    assert file.matched((*IDS, 99), 3, LAYOUT) == 40
    assert file.matched(IDS, 3, LAYOUT) == 39
    assert file.matched(IDS[:20], 3, LAYOUT) == 19


def test_another_version_layout_or_text_is_not_matched(file):
    assert file.matched((*IDS, 99), 4, LAYOUT) == 0
    assert file.matched((*IDS, 99), 3, "3 layers") == 0
    assert file.matched((7, *IDS[1:], 99), 3, LAYOUT) == 0


@pytest.mark.parametrize("size", [None, 0, 4, 300], ids=["missing", "empty", "torn", "half"])
def test_a_damaged_file_is_not_matched(file, size):
    if size is None:
        file.path.unlink()
    else:
        file.path.write_bytes(file.path.read_bytes()[:size])
    assert file.matched((*IDS, 99), 3, LAYOUT) == 0
    with pytest.raises((OSError, SafetensorError)):
        file.read(layers(8, seed=2), [5, 2], first=0)


def test_blocks_from_the_first_missing_one_on_are_copied_and_no_others(file):
    before, cache = layers(8, seed=2), layers(8, seed=2)
    file.read(cache, [5, 2], first=1)
    for name, written in layers(3, seed=1).items():
        assert torch.equal(cache[name][[5, 2]], written[1:])
        rest = [0, 1, 3, 4, 6, 7]
        assert torch.equal(cache[name][rest], before[name][rest])


@pytest.mark.parametrize(
    "settings",
    [
        {"move_cache": "none"},
        {"vllm": {"kv_transfer_config": {"kv_connector": "NixlConnector", "kv_role": "kv_both"}}},
        {"vllm": {"tensor_parallel_size": 2}},
        {"capture_routing": True, "device": "cuda"},
    ],
    ids=["none", "another-connector", "several-processes", "routing-on-gpus"],
)
def test_our_connector_stays_out_of_the_way(settings):
    assert moves_cache(EngineConfig(capture_routing=True))
    assert not moves_cache(EngineConfig(**settings))


def test_an_order_that_cannot_be_written_or_read_is_none(tmp_path):
    file = CacheFile(tmp_path / "missing" / "cache")
    file.ask(3)
    assert file.accept() is None and not file.expected()
    damaged = CacheFile(tmp_path / "cache")
    damaged.asked.touch()
    assert damaged.accept() is None and not damaged.expected()
