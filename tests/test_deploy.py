"""The Kubernetes manifest and the Slurm script, as far as they can be tried without either."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl.config import RunConfig, load_config
from rl.jobs.request import END_SECONDS, GRACE_VARIABLE

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "configs" / "deploy"
SBATCH = DEPLOY / "dorado.sbatch"
TRAIN = ["python", "-m", "rl", "train"]


def settings_of(command: list[str]) -> tuple[RunConfig, str | None]:
    """What `train` reads of its arguments, and what it resumes."""
    config, *rest = command
    resume = None
    if "--resume" in rest:
        at = rest.index("--resume")
        resume = rest[at + 1]
        del rest[at : at + 2]
    return load_config(ROOT / config, rest), resume


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, str]:
    """An environment in which Slurm's commands, Ray and Dorado write down how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    calls.touch()
    note = f'printf "%s\\n" "$(basename "$0") $(printf "%q " "$@")" >> {shlex.quote(str(calls))}\n'
    scripts = {
        "scontrol": "echo node-a; echo node-b\n",
        # Its options all begin with --.
        "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
        "hostname": "echo 10.0.0.7 fe80::1\n",
        "ray": "exec sleep 60\n",
        "python": (
            'case "$*" in\n'
            f'-c*) exec {shlex.quote(sys.executable)} "$@" ;;\n'
            '*--dry-run*) printf "name = \\"quickstart\\"\\n[model]\\nname = \\"x\\"\\n" ;;\n'
            f"-m*) trap 'echo stopping; exit 130' TERM; touch {shlex.quote(str(tmp_path / 'ready'))}\n"
            'for _ in $(seq 0 "${DORADO_TEST_TENTHS:-0}"); do sleep 0.1; done ;;\n'
            "*) cat > /dev/null ;;\nesac\n"
        ),
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{note}{script}", encoding="utf-8")
        (folder / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "DORADO_RUNS": str(tmp_path / "runs"),
    }


def calls(environment: dict[str, str]) -> list[list[str]]:
    """What was called, in words."""
    file = Path(environment["DORADO_RUNS"]).parent / "calls"
    return [shlex.split(line) for line in file.read_text(encoding="utf-8").splitlines()]


def trained(environment: dict[str, str]) -> tuple[RunConfig, str | None]:
    [run] = [c for c in calls(environment) if c[:4] == TRAIN and "--dry-run" not in c]
    return settings_of(run[4:])


def sbatch(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(SBATCH), *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def with_checkpoint(runs: Path) -> None:
    (runs / "quickstart" / "checkpoints" / "step_20").mkdir(parents=True)
    (runs / "quickstart" / "checkpoints" / "step_20" / "run.json").touch()


def test_the_slurm_script_starts_a_cluster_and_the_run_on_it(stand_ins):
    done = sbatch(stand_ins, "configs/quickstart.toml", "--steps", "7")
    output, _ = done.communicate(timeout=60)
    assert done.returncode == 0, output
    config, resume = trained(stand_ins)
    assert (config.cluster.address, config.steps, resume) == ("10.0.0.7:6379", 7, None)
    assert config.runs_dir == stand_ins["DORADO_RUNS"]
    both = [call for call in calls(stand_ins) if call[:2] == ["ray", "start"]]
    # They are started together, and write it down in any order.
    worker, head = sorted(both, key=lambda call: "--head" in call)
    assert "--head" in head and "--node-ip-address=10.0.0.7" in head and "--port=6379" in head
    assert "--address=10.0.0.7:6379" in worker and "--head" not in worker
    asked = [" ".join(call) for call in calls(stand_ins) if call[0] == "srun"]
    nodes = sorted(re.findall(r"--nodelist=(\S+)", "\n".join(asked)))
    assert nodes == ["node-a", "node-a", "node-b"], "the first one for its address too"


def test_a_slurm_job_that_was_requeued_goes_on(stand_ins):
    with_checkpoint(Path(stand_ins["DORADO_RUNS"]))
    done = sbatch(stand_ins, "configs/quickstart.toml")
    output, _ = done.communicate(timeout=60)
    assert done.returncode == 0, output
    assert trained(stand_ins)[1] == "quickstart"


def test_slurms_signal_reaches_the_run_and_its_end_is_the_scripts(stand_ins):
    script = sbatch(stand_ins | {"DORADO_TEST_TENTHS": "600"}, "configs/quickstart.toml")
    deadline = time.monotonic() + 60
    while not (Path(stand_ins["DORADO_RUNS"]).parent / "ready").exists():
        assert script.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    script.send_signal(signal.SIGTERM)
    output, _ = script.communicate(timeout=60)
    assert script.returncode == 130 and "stopping" in output, output


def test_the_slurm_script_says_what_it_wants_and_gives_time_for_the_checkpoint():
    text = SBATCH.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(SBATCH)], check=True, timeout=30)
    [before] = re.findall(r"^#SBATCH --signal=B:TERM@(\d+)$", text, re.MULTILINE)
    assert (
        int(before)
        >= load_config(ROOT / "configs/quickstart.toml").timeouts.stop_seconds + END_SECONDS
    )
    bare = subprocess.run(
        ["bash", str(SBATCH)], capture_output=True, text=True, timeout=30, encoding="utf-8"
    )
    assert bare.returncode != 0 and "usage: sbatch dorado.sbatch CONFIG" in bare.stderr


# By count: parameters (1e9), layers, bytes a token of a layer and of its input, more on a rank (GB).
POLICIES = {
    "qwen3_30b_a3b": (30.5, 48, 120e3, 2 * 2048, 0),
    "longcat_flash": (560, 28, 0.85e6, 2 * 6144, 5),
}


@pytest.mark.parametrize("name", POLICIES)
def test_what_a_gpu_configuration_holds_fits_its_devices_by_count(name):
    billions, layers, layer, held, more = POLICIES[name]
    config = load_config(ROOT / f"configs/{name}.toml")
    state = billions * (16 + 2 * config.max_staleness) / config.learner.ranks
    inputs, whole = (config.learner.micro_batch_tokens * size / 1e9 for size in (held, layer))
    assert state + more + layers * whole > 80, "without recompute it would not fit"
    assert config.learner.recompute
    assert state + more + layers * inputs + whole < 72, "80 GB, and room for what torch keeps"
    # The engines' tokens fit what they are given.
    assert config.engine.max_model_len >= config.episode.max_tokens


def rayjob() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "rayjob.yaml").read_text(encoding="utf-8"))


def test_the_manifest_is_a_rayjob_with_what_kuberay_needs():
    job = rayjob()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"])
    spec = job["spec"]
    assert spec["submissionMode"] in ("HTTPMode", "K8sJobMode", "SidecarMode")
    assert spec["shutdownAfterJobFinishes"] is True and spec["ttlSecondsAfterFinished"] > 0
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    lock = (ROOT / "requirements" / "cpu.lock").read_text(encoding="utf-8")
    assert f"ray=={cluster['rayVersion']}" in lock.replace("ray[default]", "ray")
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert all(isinstance(v, str) for v in head["rayStartParams"].values())
    for group in workers:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert isinstance(group["groupName"], str) and "rayStartParams" in group
    templates = [group["template"]["spec"] for group in (head, *workers)]
    assert len({t["containers"][0]["image"] for t in templates}) == 1
    for template in templates:
        [container] = template["containers"]
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted.keys() == {volume["name"] for volume in template["volumes"]}
        assert set(mounted.values()) == {"/shared", "/dev/shm"}


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_the_manifests_entrypoint_trains_and_goes_on_if_it_is_begun_anew(
    stand_ins, tmp_path: Path, again: bool
):
    spec = rayjob()["spec"]
    entrypoint = spec["entrypoint"].replace("/shared/", f"{tmp_path}/")
    if again:
        with_checkpoint(tmp_path / "runs")
    subprocess.run(entrypoint, shell=True, cwd=ROOT, env=stand_ins, check=True, timeout=60)
    config, resume = trained(stand_ins)
    assert (config.cluster.address, config.name) == ("auto", "quickstart")
    assert config.runs_dir == str(tmp_path / "runs") and config.checkpoint_every > 0
    assert resume == ("quickstart" if again else None)
    grace = int(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"][GRACE_VARIABLE])
    assert grace >= config.timeouts.stop_seconds + END_SECONDS
    workers = spec["rayClusterSpec"]["workerGroupSpecs"]
    cpus = sum(
        group["replicas"]
        * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
        for group in workers
    )
    assert config.asked("CPU") <= cpus
