"""What is submitted for a run: the command, the files that travel, and what is refused before."""

import re
import shlex
import subprocess
import zipfile
from pathlib import Path

import pytest

from rl.config import load_config
from rl.config_file import ConfigError
from rl.jobs import request as job_request
from rl.jobs.request import Request, check_resources, check_size, prepare, project_of

pytestmark = pytest.mark.process

CONFIG = 'name = "tiny"\n[model.init]\nfamily = "qwen3_moe"\n[[env]]\nid = "calculator"\n'
ENV = """
from envs.env import Env, say
from envs.message import Message


class Echo(Env):
    name = "echo"

    def sample(self, rng):
        return {"n": rng.randint(1, 9)}

    async def reset(self, task):
        return [Message("user", "hello")]

    async def score(self):
        return {"solved": 1.0}

    def expert(self, task):
        yield say("hello")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a configuration, which is where the command is given."""
    folder = tmp_path / "project"
    (folder / "configs").mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    (folder / "configs" / "tiny.toml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def words(request: Request) -> list[str]:
    return shlex.split(request.entrypoint)


def settings_in_job(request: Request, project: Path):
    """What the job's own `train` reads of the entrypoint, in a copy of the project."""
    _, _, _, _, config, *overrides = words(request)
    return load_config(project / config, overrides)


def test_the_job_trains_the_config_in_the_project_with_the_overrides(project: Path) -> None:
    _, request = prepare(Path("configs/tiny.toml"), ["--steps", "7", "--name=two"])
    assert words(request)[:5] == ["python", "-m", "rl", "train", "configs/tiny.toml"]
    settings = settings_in_job(request, project)
    assert (settings.steps, settings.cluster.address) == (7, "auto")
    assert request.runtime_env["working_dir"] == str(project)
    assert request.id.startswith("two-") and request.metadata["config"] == "two"


def test_an_override_with_spaces_and_quotes_reaches_the_job_as_it_is(project: Path) -> None:
    _, request = prepare(Path("configs/tiny.toml"), ["--wandb.project", "a 'b' $c; d"])
    assert settings_in_job(request, project).wandb.project == "a 'b' $c; d"


def test_the_cluster_is_the_one_that_the_job_runs_on(project: Path) -> None:
    _, request = prepare(Path("configs/tiny.toml"), ["--cluster.address", "local"])
    assert settings_in_job(request, project).cluster.address == "auto"


def test_the_run_folder_is_absolute_for_the_copy_of_the_project_goes_away(project: Path) -> None:
    _, request = prepare(Path("configs/tiny.toml"), [])
    assert settings_in_job(request, project).runs_dir == str(project / "runs")
    assert request.metadata["folder"] == str(project / "runs" / "tiny")
    assert request.metadata["user"]


def test_a_run_folder_of_the_cluster_need_not_be_here(project: Path) -> None:
    _, request = prepare(Path("configs/tiny.toml"), ["--runs_dir", "/proc/shared/runs"])
    assert settings_in_job(request, project).runs_dir == "/proc/shared/runs"


@pytest.mark.parametrize("seconds", [120, 900])
def test_a_stopped_run_gets_longer_than_it_may_take_for_its_checkpoint(
    project: Path, seconds: int
) -> None:
    _, request = prepare(Path("configs/tiny.toml"), ["--timeouts.stop_seconds", str(seconds)])
    assert int(request.runtime_env["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= seconds + 30


def test_a_run_that_is_here_is_looked_into_before_its_job_goes_on_with_it(project: Path) -> None:
    run = project / "runs" / "tiny"
    with pytest.raises(ConfigError, match=r"there is no run folder runs/tiny"):
        prepare(Path("configs/tiny.toml"), [], "tiny")
    run.mkdir(parents=True)
    (run / "config.toml").write_text(CONFIG, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"runs/tiny has no whole checkpoint"):
        prepare(Path("configs/tiny.toml"), [], "tiny")


def test_a_job_goes_on_with_a_run_that_only_the_cluster_sees(project: Path) -> None:
    for given, passed in (
        ("/proc/shared/runs/other", "/proc/shared/runs/other"),
        ("/proc/shared/runs/other/checkpoints/step_7", "/proc/shared/runs/other/step_7"),
    ):
        _, request = prepare(Path("configs/tiny.toml"), [], given)
        assert words(request)[4:7] == ["configs/tiny.toml", "--resume", passed]
        assert request.metadata["folder"] == "/proc/shared/runs/other"
        assert request.id.startswith("other-")


def test_runs_and_caches_stay_behind(project: Path) -> None:
    _, request = prepare(Path("configs/tiny.toml"), ["--runs_dir", "out/runs"])
    excludes = request.runtime_env["excludes"]
    assert {"/out/runs", "/runs", ".venv", ".git", "__pycache__", "wandb"} <= set(excludes)


def test_an_environments_file_is_named_as_the_copy_has_it(project: Path) -> None:
    (project / "worlds").mkdir()
    (project / "worlds" / "echo.py").write_text(ENV, encoding="utf-8")
    config = project / "configs" / "tiny.toml"
    config.write_text(CONFIG.replace("calculator", "../worlds/echo.py:Echo"), encoding="utf-8")
    _, request = prepare(config, [])
    assert words(request)[-2:] == ["--env.0.id", "worlds/echo.py:Echo"]


def test_an_environments_file_outside_the_project_is_refused(project: Path, tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(ENV, encoding="utf-8")
    config = project / "configs" / "tiny.toml"
    config.write_text(CONFIG.replace("calculator", "../../echo.py:Echo"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"env 'echo.py:Echo': its file .*/echo.py lies outside"):
        prepare(config, [])


def test_a_run_that_cannot_work_is_not_submitted(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"env.id: environment 'calculater' does not exist"):
        prepare(Path("configs/tiny.toml"), ["--env.0.id", "calculater"])


def test_a_config_outside_any_project_travels_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert project_of(tmp_path / "here" / "tiny.toml") == tmp_path / "here"


@pytest.mark.parametrize("in_git", [False, True], ids=["plain folder", "git repository"])
def test_a_project_too_large_to_send_is_refused_by_what_would_be_sent(
    project: Path, monkeypatch: pytest.MonkeyPatch, in_git: bool
) -> None:
    monkeypatch.setattr(job_request, "SHIPPED_MIB", 1)
    for name in ("runs/demo/metrics.jsonl", ".venv/lib/torch.so", "wandb/run"):
        (project / name).parent.mkdir(parents=True)
        (project / name).write_bytes(bytes(2**21))
    if in_git:
        subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    _, request = prepare(Path("configs/tiny.toml"), [])
    (project / "data").mkdir()
    (project / "data" / "rows.jsonl").write_bytes(bytes(2**21))
    with pytest.raises(ConfigError, match=r"2 MiB of files .* of which data has 2; .* 1 MiB"):
        check_size(project, request.runtime_env["excludes"])
    if in_git:
        (project / ".gitignore").write_text("data/\n", encoding="utf-8")
        check_size(project, request.runtime_env["excludes"])


SECRET = [
    ".env", ".env.production", "worlds/prod.env", ".envrc", ".netrc", "deep/down/.netrc", "_netrc", ".npmrc",
    ".pypirc", ".git-credentials", ".aws/credentials", ".aws/config", ".ssh/config", ".docker/config.json",
    ".kube/config", "id_rsa", "keys/id_ed25519", "ID_RSA", "server.key", "client.p12", "credentials.json",
    "service-account.json", "my_service_account.json", "client_secret_7.json", "kaggle.json", "secrets.toml",
    "secrets/wandb.txt", ".hf_token", "auth_token", "WANDB_API_KEY", "prod.tfvars",
]  # fmt: skip
HARMLESS = [".env.example", "id_rsa.pub", "secrets.py", "tokenizer.json", "worlds/token.py", "credentials.md",
            "environment.toml", ".docker/Dockerfile", "keys.jsonl", "ca.pem"]  # fmt: skip


def put(project: Path, name: str, text: str = "x") -> None:
    (project / name).parent.mkdir(parents=True, exist_ok=True)
    (project / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("in_git", [False, True], ids=["plain folder", "git repository"])
@pytest.mark.parametrize("name", SECRET)
def test_a_secret_is_refused_by_name_until_an_ignore_file_names_it(
    project: Path, name: str, in_git: bool
) -> None:
    if in_git:
        subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    put(project, name)
    with pytest.raises(ConfigError) as error:
        prepare(Path("configs/tiny.toml"), [])
    assert f"would be sent to the cluster: {name}; name them in .rayignore" in str(error.value)
    (project / (".gitignore" if in_git else ".rayignore")).write_text(f"{name}\n", encoding="utf-8")
    _, request = prepare(Path("configs/tiny.toml"), [])
    assert project / name not in request.files


def test_a_private_key_is_known_by_what_it_holds_and_a_link_by_where_it_leads(
    project: Path, tmp_path: Path
) -> None:
    put(project, "deploy", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl")
    put(project, "both.pem", "-----BEGIN CERTIFICATE-----\nMII\n-----BEGIN RSA PRIVATE KEY-----\n")
    put(tmp_path, "home/.aws/credentials")
    (project / "cloud").symlink_to(tmp_path / "home/.aws/credentials")
    (project / "around").symlink_to(project)
    with pytest.raises(ConfigError, match=r"cluster: both\.pem, cloud, deploy; name them"):
        prepare(Path("configs/tiny.toml"), [])


def test_examples_public_halves_and_code_are_sent(project: Path) -> None:
    for name in HARMLESS:
        put(project, name, "-----BEGIN CERTIFICATE-----\nMII" if name == "ca.pem" else "x")
    _, request = prepare(Path("configs/tiny.toml"), [])
    assert {project / name for name in HARMLESS} <= set(request.files)


def test_what_is_listed_is_what_ray_packs(project: Path, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    for name in (
        "a.py",
        "data/big",
        "data/.gitignore",
        "out/x",
        "runs/r/log",
        "__pycache__/a.pyc",
        "w/é",
    ):
        put(project, name, "*\n!.gitignore\n" if name.endswith("ignore") else "x")
    put(project, ".rayignore", "/out\n")
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    put(project, ".git/info/exclude", "a.py\n")  # which Ray does not read
    _, request = prepare(Path("configs/tiny.toml"), [])
    create_package(
        str(project),
        tmp_path / "sent.zip",
        include_gitignore=True,
        excludes=list(request.runtime_env["excludes"]),
    )
    with zipfile.ZipFile(tmp_path / "sent.zip") as sent:
        packed = {project / name for name in sent.namelist() if not name.endswith("/")}
    assert packed == set(request.files) and project / "a.py" in packed


def test_variables_that_are_asked_for_go_along(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERE", "a b=c")
    _, request = prepare(Path("configs/tiny.toml"), [], None, ["HERE", "GIVEN=x=y", "EMPTY="])
    sent = request.runtime_env["env_vars"]
    assert {k: sent[k] for k in ("HERE", "GIVEN", "EMPTY")} == {
        "HERE": "a b=c",
        "GIVEN": "x=y",
        "EMPTY": "",
    }
    assert "HERE, GIVEN, EMPTY" in request.shown and "a b=c" not in request.shown


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("NOT_SET_HERE", "--env NOT_SET_HERE: it is not set here; set it, or write"),
        ("=x", "--env: '' is no name of a variable"),
        ("A B=x", "--env: 'A B' is no name of a variable"),
        ("hf-AbCdEf", "--env: a text of 9 characters is no name of a variable"),
        ("RAY_JOB_STOP_WAIT_TIME_S=1", "it follows from timeouts.stop_seconds"),
        ("A=\0", "holds a NUL"),
    ],
)
def test_a_variable_that_cannot_be_is_one_sentence(project: Path, given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        prepare(Path("configs/tiny.toml"), [], None, [given])


def asked(project: Path, *overrides: str):
    return load_config(project / "configs" / "tiny.toml", overrides)


def test_a_cluster_with_too_few_cpus_is_named_with_what_was_asked(project: Path) -> None:
    config = asked(project, "--engine.count", "4", "--engine.cpus", "2", "--learner.cpus", "1")
    check_resources(config, [{"CPU": 5.0}, {"CPU": 4.0}])
    with pytest.raises(ConfigError) as error:
        check_resources(config, [{"CPU": 4.0}, {"CPU": 4.0, "memory": 1.0}])
    assert str(error.value) == (
        "engine.count: the run asks for 9 CPUs, 4 of 2 (engine) and 1 of 1 (learner); the cluster has 8 "
        "on 2 nodes"
    )


def test_an_actor_that_no_node_can_hold_is_refused(project: Path) -> None:
    config = asked(project, "--engine.gpus", "8", "--engine.count", "1")
    check_resources(config, [{"CPU": 9.0, "GPU": 8.0}])
    with pytest.raises(
        ConfigError, match=r"engine.gpus: one engine asks for 8 GPUs, the largest .* 4"
    ):
        check_resources(config, [{"CPU": 9.0, "GPU": 4.0}] * 2)
