"""The house rules that a test can hold: who imports whom, what is light, what is called how."""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from rl.config import load_config
from rl.preflight.check import check_run

ROOT = Path(__file__).parent.parent
PACKAGES = ("envs", "rollout", "reward", "trainer", "rl")
MAY_IMPORT = {
    "envs": set(),
    "trainer": set(),
    "rollout": {"envs"},
    "reward": {"envs", "rollout"},
    "rl": {"envs", "rollout", "reward", "trainer"},
}
# Third parties that only these files may import, wherever in the file.
ONLY_IN = {
    "vllm": {
        "rollout/cache_transfer.py",
        "rollout/families/longcat_flash.py",
        "rollout/vllm_adapter.py",
        "rollout/vllm_arguments.py",
        "rollout/vllm_core_process.py",
        "rollout/vllm_engine.py",
        "rollout/vllm_parsers.py",
        "rollout/vllm_plugin.py",
        "rollout/vllm_final_outputs.py",
        "rollout/vllm_rolling_scheduler.py",
        "rollout/vllm_rolling_worker.py",
        "rollout/vllm_routing_scheduler.py",
        "rollout/vllm_routing_worker.py",
        "rollout/vllm_shadow.py",
        "rollout/weight_transfer.py",
    },
    "wandb": {"rl/trackers/wandb_tracker.py"},
    "datasets": {"envs/dataset.py"},
    "math_verify": {"reward/mathematics.py"},
    "mlflow": {"rl/trackers/mlflow_tracker.py"},
    "opentelemetry": {"rl/trackers/otel_tracker.py"},
    "prometheus_client": {"rl/actors/engine_metrics.py", "rl/trackers/prometheus_tracker.py"},
    "tensorboard": {"rl/trackers/tensorboard_tracker.py"},
    "trackio": {"rl/trackers/trackio_tracker.py"},
}
ONLY_UNDER = {
    "nicegui": "rl/dashboard/",
    "ray": "rl/",
    "safetensors": "trainer/",
    "torch": "trainer/",
    "tokenizers": "trainer/",
}
TENSORS_ELSEWHERE = {
    "rollout/cache_file.py": {"torch", "safetensors"},
    "rollout/cache_transfer.py": {"torch", "safetensors"},
    "rollout/families/longcat_flash.py": {"torch"},
    "rollout/vllm_plugin.py": {"torch"},
    "rollout/vllm_routing_worker.py": {"torch"},
    "rollout/vllm_shadow.py": {"torch"},
    "rollout/weight_file.py": {"safetensors"},
    "rollout/weight_transfer.py": {"torch", "safetensors"},
    "rl/actors/learner.py": {"torch"},
    "rl/preflight/check.py": {"torch"},
    "rl/dashboard/token_text.py": {"tokenizers"},
}
HEAVY = (
    "torch",
    "transformers",
    "tokenizers",
    "vllm",
    "ray",
    "datasets",
    "wandb",
    "math_verify",
    "nicegui",
    "mlflow",
    "opentelemetry",
    "prometheus_client",
    "tensorboard",
    "trackio",
)
# What a folder of `rl/` imports on top of the rule for its package: neither Ray nor a room above it.
NOT_IN_ROOM = {
    "samples": {"ray", "rl.actors", "rl.fleet", "rl.loop"},
    "tasks": {"ray", "rl.actors", "rl.fleet", "rl.loop"},
    "record": {"rl.actors", "rl.fleet", "rl.loop"},
}
# The rooms of `rl/`, its folders and single files, from bottom to top: each imports rooms of lower floors.
FLOORS = (
    {"config_error", "samples", "stop_config", "tracker_config"},
    {"chat_data", "commands", "config_file", "env_table"},
    {"model_table"},
    {"config"},
    {"cold_start", "model_formats", "nodes", "objective_check", "plugin_check", "record"},
    {"tasks"},
    {"models"},
    {"actors", "dashboard", "preflight", "simulator"},
    {"compare", "fleet", "planning", "preference_data", "sft", "trackers"},
    {"cluster"},
    {"loop"},
    {"env_tools", "jobs", "judge_tools", "launch", "recipes"},
    {"fuse_cli", "reward_cli", "sandbox_cli", "sft_cli"},
    {"cli"},
)
BESIDE = [
    path
    for folder in ("benchmarks", "docs", "scripts", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


@pytest.fixture(scope="module", autouse=True)
def parsed_for_these_tests() -> Iterator[None]:
    """The trees of all files are no small thing to keep for the rest of a session."""
    yield
    parsed.cache_clear()


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    """Each file of the packages, parsed once for all tests."""
    return {path: parsed(path.read_text(encoding="utf-8")) for path in FILES}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def imports(source: str) -> list[tuple[str, int]]:
    """(dotted module, line) of every import in a file's text, nested ones included."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            found += ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            found.append((node.module or "", node.lineno))
    return found


def imports_under(root: Path, package: str) -> list[tuple[str, str, int]]:
    """(file, dotted module, line) of every import in a package of a checkout."""
    files = sorted((root / package).rglob("*.py"))
    return [
        (file.relative_to(root).as_posix(), *found)
        for file in files
        for found in imports(file.read_text(encoding="utf-8"))
    ]


@pytest.fixture(scope="module")
def every_import() -> list[tuple[str, str, int]]:
    return [found for package in PACKAGES for found in imports_under(ROOT, package)]


def room(name: str) -> str:
    """The room of a file or a module of `rl`; "" for any other."""
    parts = name.removesuffix(".py").replace("/", ".").split(".")
    # `python -m rl` is the command line.
    return parts[1].replace("__main__", "cli") if parts[0] == "rl" and len(parts) > 1 else ""


def broken_into(found: list[tuple[str, str, int]]) -> list[str]:
    """Imports that a room may not have."""
    return [
        f"{file}:{line} imports {module}"
        for file, module, line in found
        for refused in NOT_IN_ROOM.get(room(file), ())
        if f"{module}.".startswith(f"{refused}.")
    ]


def not_downwards(found: list[tuple[str, str, int]]) -> list[str]:
    """Imports between rooms of `rl` that do not go to a lower floor."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    return [
        f"{file}:{line} imports {module}"
        for file, module, line in found
        if room(file) not in ("", "__init__", room(module)) and room(module)
        if floor[room(file)] <= floor[room(module)]
    ]


def test_packages_import_only_those_below_them(every_import):
    wrong = [
        f"{file}:{line} imports {module}"
        for file, module, line in every_import
        if (top := module.partition(".")[0]) in PACKAGES
        and top not in MAY_IMPORT[(package := file.partition("/")[0])] | {package}
    ]
    assert wrong == []


def test_every_room_of_rl_has_a_floor():
    assert sorted(name for floor in FLOORS for name in floor) == sorted(
        {room(name_of(path)) for path in FILES} - {"", "__init__"}
    )


def test_rooms_of_rl_import_downwards_only_and_so_in_no_circle(every_import):
    assert not_downwards(every_import) == []


def test_rooms_that_know_no_ray_and_no_fleet_import_neither(every_import):
    assert broken_into(every_import) == []


@pytest.mark.parametrize(
    ("file", "planted", "rule"),
    [
        ("rl/samples/ledger.py", "import ray", broken_into),
        ("rl/samples/group.py", "from rl.actors.engine import EngineActor", broken_into),
        ("rl/tasks/mixture.py", "from ray.exceptions import RayError", broken_into),
        ("rl/tasks/task_source.py", "def f():\n    import rl.loop.run", broken_into),
        ("rl/record/status.py", "from rl.fleet.fleet import Fleet", broken_into),
        ("rl/record/status.py", "from rl.loop.watch import Watch", not_downwards),
        ("rl/fleet/fleet.py", "from rl.loop.group_book import GroupBook", not_downwards),
        ("rl/config.py", "from rl.record.run_folder import RunFolder", not_downwards),
        ("rl/compare.py", "from rl.fleet.fleet import Fleet", not_downwards),
    ],
)
def test_a_room_that_is_broken_into_is_found(tmp_path, file, planted, rule):
    copy = tmp_path / file
    shutil.copytree(ROOT / "rl", tmp_path / "rl", ignore=shutil.ignore_patterns("__pycache__"))
    before = rule(imports_under(tmp_path, "rl"))
    copy.write_text(f"{copy.read_text(encoding='utf-8')}\n{planted}\n", encoding="utf-8")
    [found] = set(rule(imports_under(tmp_path, "rl"))) - set(before)
    assert found.startswith(f"{file}:")


def test_heavy_third_parties_are_imported_in_the_files_named_for_them(every_import):
    def allowed(file: str, top: str) -> bool:
        named = file in ONLY_IN.get(top, {file})
        under = file.startswith(ONLY_UNDER.get(top, ""))
        return named and (under or top in TENSORS_ELSEWHERE.get(file, ()))

    wrong = [
        f"{file}:{line} imports {module}"
        for file, module, line in every_import
        if not allowed(file, module.partition(".")[0])
    ]
    assert wrong == []


def test_the_scheduler_is_made_of_plain_functions(every_import):
    plain = {"collections", "collections.abc", "dataclasses", "math", "typing"}
    files = {f"rollout/{name}.py" for name in ("window", "placement", "scheduler")}
    seen = {(file, module) for file, module, _ in every_import if file in files}
    assert {file for file, _ in seen} == files
    assert {module for _, module in seen} <= plain | {"rollout.window", "rollout.placement"}


def test_rewards_see_of_rollout_its_records_only(every_import):
    seen = {
        m for file, m, _ in every_import if file.startswith("reward/") and m.startswith("rollout")
    }
    assert seen <= {"rollout.trajectory", "rollout.engine"}


def test_of_rollout_only_the_renderer_knows_the_tokenizer(every_import):
    knowing = {file for file, m, _ in every_import if m.partition(".")[0] == "transformers"}
    assert {f for f in knowing if f.startswith("rollout/")} == {"rollout/renderer.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_the_one_of_this_checkout(package):
    file = importlib.import_module(package).__file__
    assert file is not None and Path(file).is_relative_to(ROOT)


def test_settings_environments_and_rewards_load_nothing_heavy():
    light = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if name_of(path).startswith(("envs/", "reward/"))
    ]
    light += [
        "rl.config",
        "rl.preflight.check",
        "rl.cli",
        "rl.record.progress",
        "rl.samples.ledger",
        "trainer.config",
    ]
    script = (
        "import importlib, json, sys\n"
        f"for name in {light!r}: importlib.import_module(name)\n"
        f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        encoding="utf-8",
    )
    assert json.loads(done.stdout) == []


def test_a_file_opens_with_what_it_is_and_a_package_is_no_more_than_that(trees):
    assert [name_of(path) for path, tree in trees.items() if not ast.get_docstring(tree)] == []
    packages = {path: tree for path, tree in trees.items() if path.name == "__init__.py"}
    assert [name_of(path) for path, tree in packages.items() if len(tree.body) != 1] == []


def test_a_docstring_opens_with_what_its_subject_does_or_is(trees):
    """AGENTS.md, Language: a word that points at something not met yet is no opening."""
    pointing = re.compile(r"(Of|That|These|Whether|What)\b")
    wrong = [
        f"{name_of(path)}:{getattr(node, 'lineno', 1)} opens with {found[1]!r}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (found := pointing.match(ast.get_docstring(node) or ""))
    ]
    assert wrong == []


def texts_without_encoding(tree: ast.AST) -> Iterator[int]:
    """Lines of calls that read or write text in the locale's encoding."""
    nodes = list(ast.walk(tree))
    awaited = {id(one.value) for one in nodes if isinstance(one, ast.Await)}
    for call in nodes:
        if not isinstance(call, ast.Call) or any(
            k.arg in ("encoding", None) for k in call.keywords
        ):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        is_open = isinstance(call.func, ast.Name) and name == "open"
        on = getattr(getattr(call.func, "value", None), "id", "")
        given = {k.arg: k.value for k in call.keywords}
        # `open(path, "w")`, `path.open("w")`, `gzip.open(path, "wt")`, `os.fdopen(1, "w")`
        modes = [given["mode"]] if "mode" in given else call.args[int(is_open) : 2]
        as_text = any(
            isinstance(mode := getattr(one, "value", None), str)
            and mode
            and set(mode) <= set("rwaxt+")
            for one in modes
        )
        methods = (name == "read_text" and not call.args) or (
            name == "write_text" and len(call.args) < 2
        )
        opens = name in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile") and as_text
        opens = opens and on != "tarfile"
        bare = (is_open and len(call.args) < 2) or (
            name == "open" and not call.args and id(call) not in awaited
        )
        plain = bare and "mode" not in given
        streams = name in ("TextIOWrapper", "FileHandler") and isinstance(call.func, ast.Attribute)
        ends = name in ("run", "Popen", "check_output")
        lines = any(k in ("text", "universal_newlines") for k in given) and ends
        if methods or opens or plain or streams or lines:
            yield call.lineno


@pytest.mark.heavy
def test_text_is_read_and_written_in_utf_8_whatever_the_locale_is(trees):
    beside = {path: ast.parse(path.read_text(encoding="utf-8")) for path in BESIDE}
    wrong = [
        f"{name_of(path)}:{line} names no encoding"
        for path, tree in (trees | beside).items()
        for line in texts_without_encoding(tree)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("open(path)", True),
        ("open(path, 'w')", True),
        ("open(path, mode='a')", True),
        ("open(path, 'rb')", False),
        ("open(path, encoding='utf-8')", False),
        ("path.open('w')", True),
        ("path.open('wb')", False),
        ("path.read_text()", True),
        ("path.read_text(errors='replace')", True),
        ("path.read_text('utf-8')", False),
        ("path.write_text(text)", True),
        ("path.write_text(text, 'utf-8')", False),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command)", False),
        ("subprocess.check_output(command, text=True)", True),
        ("path.open()", True),
        ("await page.open()", False),
        ("gzip.open(path, 'rt')", True),
        ("gzip.open(path)", False),
        ("os.fdopen(1, 'w')", True),
        ("os.fdopen(1)", False),
        ("tarfile.open(path, 'w')", False),
        ("session.open(task)", False),
        ("tarfile.open(path, 'r:xz')", False),
    ],
)
def test_text_in_the_locales_encoding_is_found(line, found):
    assert bool(list(texts_without_encoding(ast.parse(line)))) is found


def test_no_file_is_named_like_the_standard_library_or_after_a_mechanism():
    refused = set(sys.stdlib_module_names) | {"utils", "misc", "common", "helpers", "manager"}
    named = {name_of(path) for path in FILES if path.stem in refused and path.stem[0] != "_"}
    assert named == set()


def test_no_function_is_longer_than_a_main_loop_may_be(trees):
    long = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= 100
    ]
    assert long == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_every_configuration_loads_and_could_run(path, tmp_path):
    check_run(load_config(path, ["--cluster.weights_dir", str(tmp_path)]))
