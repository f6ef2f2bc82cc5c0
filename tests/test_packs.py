"""Packs of generated tasks: whole or not there, the same for a seed, read one task at a time."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
from typer.testing import CliRunner

from envs.env import Task
from envs.generated.domain_file import FOLDER
from envs.generated.environment import Generated, GeneratedConfig
from envs.generated.pack import Pack, PackMistake
from envs.registry import settings_of
from envs.session import demonstrate
from envs.settings import BadSettings
from rl.config_error import ConfigError
from rl.env_table import EnvTable, anchor_tables
from rl.env_tools.cli import app
from rl.env_tools.packs import chosen_domains, fixed_levels, generate


def pack_of(folder, tasks=12, processes=1, domains="clinic,home", seed=3):
    generate(
        folder,
        chosen_domains(domains),
        tasks=tasks,
        seed=seed,
        fixed={"chain": 2},
        processes=processes,
    )
    return Pack(folder)


@pytest.mark.heavy
def test_a_seed_makes_the_same_pack_however_many_processes(tmp_path):
    one, other = pack_of(tmp_path / "one"), pack_of(tmp_path / "other")
    assert one.digest == other.digest
    assert [one.task(i).as_json() for i in range(12)] == [
        other.task(i).as_json() for i in range(12)
    ]
    assert pack_of(tmp_path / "third", seed=4).digest != one.digest
    assert {one.task(i).measures["acts"] for i in range(12)} == {2}


@pytest.mark.process
def test_two_processes_make_the_pack_that_one_does(tmp_path):
    one = pack_of(tmp_path / "one", tasks=60)
    assert pack_of(tmp_path / "two", tasks=60, processes=2).digest == one.digest


def test_a_pack_says_what_it_holds(tmp_path):
    pack = pack_of(tmp_path / "pack")
    sheet = json.loads((tmp_path / "pack" / "verification.json").read_text(encoding="utf-8"))
    assert sheet["tries"]["accepted"] == sheet["tasks"] == len(pack.entries()) == 12
    assert {one["tasks"] for one in sheet["domains"].values()} == {6}
    assert "12 tasks over 2 domains" in (tmp_path / "pack" / "README.md").read_text(
        encoding="utf-8"
    )
    listed = CliRunner().invoke(app, ["packs", str(tmp_path)])
    assert f"pack  {pack.digest}  12 tasks, 2 domains, seed 3" in listed.output


async def test_the_expert_plays_a_pack_from_its_name_and_ids_alone(tmp_path):
    pack = pack_of(tmp_path / "pack")
    env = Generated(settings_of(Generated, {"pack": str(tmp_path / "pack")}))
    tasks = env.tasks("train", 0)
    drawn = [next(tasks) for _ in range(24)]
    assert all(task.data.keys() == {"pack", "id"} for task in drawn)
    for task in drawn[:4]:
        opening, said, rewards = await demonstrate(Generated(env.config), task)
        assert rewards == {"solved": 1.0}, said
        # In the order in which the tools are told, for whoever imitates it.
        known = {tool.name: list(tool.parameters["properties"]) for tool in opening.tools}
        for call in (call for message in said for call in message.tool_calls):
            assert list(call.arguments) == [k for k in known[call.name] if k in call.arguments]
    with pytest.raises(PackMistake, match=r"config\.pack is"):
        await env.reset(Task("generated", {"pack": "another", "id": 0}))
    with pytest.raises(PackMistake, match="no task 99"):
        pack.task(99)


def test_held_out_domains_and_structures_of_a_pack_are_apart(tmp_path):
    pack = pack_of(tmp_path / "pack", tasks=30)
    for heldout in ("task", "structure", "domain"):
        env = Generated(GeneratedConfig(pack=str(tmp_path / "pack"), heldout=heldout))
        seen = {}
        for split in ("train", "heldout"):
            tasks = env.tasks(split, 0)
            try:
                entries = {next(tasks).data["id"] for _ in range(60)}
            except PackMistake:  # of thirty tasks none may be held out
                assert heldout != "domain"
                entries = set()
            known = {one.id: one for one in pack.entries()}
            key = {"task": "id", "structure": "structure", "domain": "domain"}[heldout]
            seen[split] = {getattr(known[id], key) for id in entries}
        assert not seen["train"] & seen["heldout"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"pack": "nowhere"}, "has no pack.json"),
        ({"domains": ["moon"]}, "there is no domain 'moon'"),
        ({"domains": ["clinic"], "heldout": "domain"}, "needs two domains"),
        ({"task": {"chain": 0}}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_work_are_refused(settings, sentence):
    with pytest.raises(BadSettings, match=sentence):
        settings_of(Generated, settings)


def test_what_is_no_whole_pack_is_refused(tmp_path):
    pack_of(tmp_path / "pack")
    with pytest.raises(ConfigError, match="exists already"):
        pack_of(tmp_path / "pack")
    sheet = tmp_path / "pack" / "pack.json"
    read = json.loads(sheet.read_text(encoding="utf-8"))
    sheet.write_text(json.dumps(read | {"format": 99}), encoding="utf-8")
    with pytest.raises(PackMistake, match="format 99"):
        Pack(tmp_path / "pack")
    assert "format 99" in CliRunner().invoke(app, ["packs", str(tmp_path)]).output


def spoilt(pack, way):
    """A copy of a pack with one thing wrong."""
    copy = pack.parent / f"{way} #1%25?"
    shutil.copytree(pack, copy)
    tasks, sheet, domain = (
        copy / "tasks.sqlite", copy / "pack.json", next((copy / "domains").iterdir())
    )  # fmt: skip
    match way:
        case "cut":
            tasks.write_bytes(tasks.read_bytes()[:5000])
        case "noise":
            tasks.write_bytes(b"x" * 5000)
        case "empty":
            tasks.write_bytes(b"")
        case "list" | "keys":
            sheet.write_text('{"format": 2}' if way == "keys" else "[]", encoding="utf-8")
        case "bytes":
            sheet.write_bytes(b"\xff\xfe")
        case "fewer" | "damaged":
            done = (
                "delete from tasks where id = 1"
                if way == "fewer"
                else "update tasks set data = x'00'"
            )
            with closing(sqlite3.connect(tasks)) as db:
                db.execute(done)
                db.commit()
        case "domain":
            domain.write_text(
                domain.read_text(encoding="utf-8").replace("a clinic", "a ward"), encoding="utf-8"
            )
        case "removed":
            domain.unlink()
    return copy


def test_a_pack_that_was_cut_off_or_edited_is_refused_in_one_sentence(tmp_path):
    whole = pack_of(tmp_path / "pack", tasks=2, domains="clinic")
    ways = {
        "cut": "cannot be read|malformed", "noise": "cannot be read", "empty": "cannot be read",
        "list": "format None", "keys": "digest has to be of type str", "bytes": "is no JSON",
        "fewer": "holds 1 tasks", "domain": "is not as it was", "removed": "is not as it was",
        "damaged": "task 1 is damaged",
    }  # fmt: skip
    for way, sentence in ways.items():
        copy = spoilt(whole.folder, way)
        with pytest.raises(PackMistake, match=sentence):
            pack = Pack(copy)
            assert pack.domains
            pack.task(1)
    assert Pack(spoilt(whole.folder, "not")).task(1) == whole.task(1)


def test_a_pack_that_changes_while_a_process_reads_it_is_refused(tmp_path):
    pack = pack_of(tmp_path / "pack", tasks=1, domains="clinic")
    shutil.rmtree(tmp_path / "pack")
    with pytest.raises(PackMistake, match="is gone"):
        pack.task(0)
    pack_of(tmp_path / "pack", tasks=1, domains="clinic", seed=4)
    with pytest.raises(PackMistake, match="not the file that this process opened first"):
        pack.task(0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--domains", "5000"], "1 to 1000"),
        (["--domains", "sampled:1:900"], "1 to 150 tools"),
        (["--domains", "moon"], "there is no domain 'moon'"),
        (["--domains", "clinic,clinic"], "two domains are called clinic"),
        (["--task", '{"chain": 99}'], "chain: input should be less than or equal to 12"),
        (["--task", "chain"], "no JSON object"),
        (["--task", "[]"], "no JSON object"),
        (["--domains", "\N{SUPERSCRIPT TWO}"], "there is no domain"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, sentence):
    result = CliRunner().invoke(app, ["generate", str(tmp_path / "pack"), *arguments])
    assert result.exit_code == 2
    assert sentence in result.output
    assert not list(tmp_path.iterdir())
    assert fixed_levels('{"chain": 2}') == {"chain": 2}


@pytest.mark.process
def test_an_interrupted_call_leaves_no_half_pack_and_the_next_one_cleans_up(tmp_path):
    code = (
        "import sys; from pathlib import Path; from rl.env_tools.packs import *;"
        "generate(Path(sys.argv[1]), chosen_domains('clinic'), tasks=5000, seed=1, fixed={}, processes=1)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "pack")]) as running:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".pack.partial-*/tasks.sqlite")):
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
    assert not (tmp_path / "pack").exists()
    assert list(tmp_path.glob(".pack.partial-*"))
    elsewhere = tmp_path / ".pack.partial-another-machine-1"  # its process may well be alive there
    elsewhere.mkdir()
    pack_of(tmp_path / "pack", tasks=2, domains="clinic")
    assert {path.name for path in tmp_path.iterdir()} == {"pack", elsewhere.name}


def test_packs_and_domain_files_are_seen_from_the_folder_of_the_config(tmp_path):
    pack_of(tmp_path / "worlds" / "pack", tasks=2)
    text = (FOLDER / "clinic.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(text.replace('"clinic"', '"mine"', 1), encoding="utf-8")
    tables = [
        {"id": "generated", "name": "packed", "config": {"pack": "worlds/pack"}},
        {"id": "generated", "name": "own", "config": {"domains": ["mine.toml", "bank"]}},
    ]
    values = {"env": tables}
    anchor_tables(values, tmp_path)
    packed, own = (EnvTable.model_validate(table).make() for table in values["env"])
    assert sorted(packed.domains) == ["clinic", "home"]
    assert sorted(own.domains) == ["bank", "mine"]


def test_a_full_disk_and_a_name_that_is_too_long_are_said(tmp_path, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(ConfigError, match="File name too long"):
        pack_of(tmp_path / ("x" * 300))
    (tmp_path / ".pack.partial-mine").mkdir()  # somebody's own, and no number
    monkeypatch.setattr("rl.env_tools.packs.write_tasks", full)
    with pytest.raises(ConfigError, match="cannot be written: database or disk is full"):
        pack_of(tmp_path / "pack")
    assert [path.name for path in tmp_path.iterdir()] == [".pack.partial-mine"]
