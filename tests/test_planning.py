"""`dorado plan --here`: what is predicted of a measured machine, proposed, refused, and left behind."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from counter_probe import Counter

from rl.config import RunConfig
from rl.config_error import ConfigError
from rl.planning.engine_probe import Change, Replay
from rl.planning.learner_probe import Steps
from rl.planning.machine import EngineCost, LearnerCost, Machine, Sharing, learner_costs
from rl.planning.predict import RUN_OVERHEAD, Candidate, candidates, own_candidate, predict, slowed
from rl.planning.probe import Probe, ProbeError
from rl.planning.refusal import refuse, refuse_sweep
from rl.planning.report import make_plan, plan_json, plan_lines, toml_lines
from rl.planning.workload import Played, TurnLengths, limited, tasks_of
from rl.simulator.run_trace import PlayedTurn
from trainer.sample import TrainSample

# For a probe to start on a machine that is busy.
SECONDS = 300
FIXED, BESIDE, READING = 0.004, 0.0002, 1e-5
SETTINGS = {
    "name": "planned",
    "steps": 4,
    "model": {"init": {}},
    "env": [{"id": "calculator"}],
    "batch": {"groups": 4, "group_size": 8},
    "engine": {"count": 1, "max_num_seqs": 64},
    "learner": {"micro_batch_tokens": 2048, "threads": 1},
    "rollout": {"max_in_flight_groups": 8},
}


def run_config(**changes: object) -> RunConfig:
    return RunConfig.model_validate(SETTINGS | changes)


def played(written: int = 20, prompt: int = 40) -> Played:
    mask = (False,) * prompt + (True,) * written
    zeros = (0.0,) * len(mask)
    ids = (5,) * len(mask)
    sample = TrainSample("t", "calculator", ids, mask, zeros, zeros, (0,) * len(mask))
    return Played((TurnLengths((5,) * prompt, written, 0.0),), sample)


def replayed(sequences: int, written: int = 20, prompt: int = 40, others: float = 0) -> Replay:
    """What an engine of these costs does with so many sequences at a time."""
    waves = 2
    seconds = written * (FIXED + BESIDE * sequences) + sequences * prompt * READING
    turns = [
        PlayedTurn("probe", wave * seconds, (wave + 1) * seconds, prompt, written)
        for wave in range(waves)
        for _ in range(sequences)
    ]
    busy = waves * seconds
    return Replay(
        sequences, tuple(turns), len(turns), busy, core=busy, front=0.0, others=others * busy
    )


def engine(threads: int = 1, *, compiled: bool = False, times: float = 1.0) -> EngineCost:
    replays = tuple(replayed(count) for count in (8, 32, 64))
    costs = (FIXED * times, BESIDE * times, READING * times)
    change = Change(staging=0.0, pause=0.0)
    return EngineCost(threads, compiled, 10.0, 100_000, 10**9, *costs, replays, change)


def machine(**changes: object) -> Machine:
    found = Machine(
        cpus=2,
        memory=16 * 10**9,
        groups=[[played()] * 8] * 4,
        by="the policy",
        episode_cpu=0.0,
        engines=(engine(),),
        learners=(LearnerCost(1, 2048, 0.0, 1e-4, cpus=1.0),),
        learner_memory=10**9,
        sharing=Sharing(engine=1.0, learner=1.0, cpus=2.0, pair=1.0),
        publish_seconds=0.0,
        notes=(),
    )
    return replace(found, **changes)  # pyright: ignore[reportArgumentType]


def candidate(**changes: object) -> Candidate:
    found = Candidate(1, engine(), 64, LearnerCost(1, 2048, 0.0, 1e-4, cpus=1.0))
    return replace(found, **changes)  # pyright: ignore[reportArgumentType]


def test_the_costs_that_made_the_replays_explain_them():
    assert engine().error < 1e-6
    assert engine(times=1.2).error == pytest.approx(0.2)


def test_sync_is_rollouts_and_then_the_learner():
    found = predict(run_config(mode="sync"), machine(), candidate())
    rollouts = 20 * (FIXED + 32 * BESIDE) + 32 * 40 * READING
    learner = 32 * 60 * 1e-4
    assert found.step_seconds == pytest.approx(rollouts + learner, rel=0.02)
    assert found.rate == pytest.approx(32 / (rollouts + learner), rel=0.02)
    assert found.learner_share == pytest.approx(learner / (rollouts + learner), rel=0.03)


def test_in_flight_is_bound_by_the_slower_of_the_two():
    slow_learner = candidate(learner=LearnerCost(1, 2048, 0.0, 1e-3, cpus=1.0))
    found = predict(run_config(), machine(), slow_learner)
    assert found.rate == pytest.approx(1 / (60 * 1e-3), rel=0.02)
    assert found.learner_share == pytest.approx(1, abs=0.02)


def test_a_change_of_weights_costs_in_flight_its_prefixes_and_the_pause():
    pausing = replace(engine(), change=Change(staging=0.1, pause=0.2))
    free = predict(run_config(), machine(), candidate())
    paused = predict(run_config(), machine(), candidate(engine=pausing))
    assert paused.step_seconds == pytest.approx(free.step_seconds + 0.3, rel=0.1)


def test_outside_of_in_flight_nothing_is_written_until_the_weights_are_there():
    sync = run_config(mode="sync")
    free = predict(sync, machine(), candidate())
    waiting = predict(sync, machine(publish_seconds=0.5), candidate())
    assert waiting.step_seconds == pytest.approx(free.step_seconds + 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("cpus", "engines", "threads", "expected"),
    [(2, 1, 1, (1.0, 1.3, 1.4)), (2, 2, 1, (1.2, 2.34, 2.1)), (8, 2, 1, (1.2, 1.56, 1.4))],
)
def test_who_shares_the_cores_takes_longer(cpus, engines, threads, expected):
    sharing = Sharing(engine=1.3, learner=1.4, cpus=2.0, pair=1.2)
    found = slowed(machine(cpus=cpus, sharing=sharing), candidate(engines=engines))
    assert (found.alone, found.beside, found.learner) == pytest.approx(expected)


def test_what_episodes_take_is_shared_too():
    rate = RUN_OVERHEAD * engine().most.rate
    found = slowed(machine(episode_cpu=1 / rate), candidate())
    assert found.beside == pytest.approx(1.5)


def test_sync_pays_nothing_for_sharing_and_in_flight_does():
    shared = machine(sharing=Sharing(engine=1.5, learner=1.5, cpus=2.0, pair=1.0))
    for mode, times in (("sync", 1.0), ("in_flight", 1.5)):
        slow = predict(run_config(mode=mode), shared, candidate())
        free = predict(run_config(mode=mode), machine(), candidate())
        assert slow.step_seconds == pytest.approx(times * free.step_seconds, rel=0.1)


def test_candidates_fit_the_memory_and_have_the_fastest_micro_batches():
    learners = (
        LearnerCost(1, 1024, 0.0, 3e-4, 1.0),
        LearnerCost(1, 2048, 0.0, 2e-4, 1.0),
        LearnerCost(2, 2048, 0.0, 1e-4, 1.9),
    )
    found = list(candidates(run_config(), machine(learners=learners)))
    assert {one.engines for one in found} == {1, 2}
    assert {one.learner for one in found} == {learners[1], learners[2]}
    assert {one.max_num_seqs for one in found if one.engines == 2} == {16, 32, 64}
    small = machine(learners=learners, memory=3 * 10**9)
    assert {one.engines for one in candidates(run_config(), small)} == {1}


def test_the_own_settings_are_predicted_where_they_were_measured():
    found = own_candidate(run_config(), machine())
    assert found is not None and found.applied(run_config()) == run_config()
    assert own_candidate(run_config(engine={"threads": 2}), machine()) is None


def test_the_faster_engine_is_proposed_and_of_equal_ones_the_smaller():
    fast = engine(compiled=True, times=0.5)
    plan = make_plan(run_config(), machine(engines=(engine(), fast)))
    assert plan.proposed.candidate.engine == fast
    assert plan.own is not None and plan.own.rate < plan.proposed.rate
    bound = machine(learners=(LearnerCost(1, 2048, 0.0, 1e-3, 1.0),), engines=(engine(), fast))
    assert make_plan(run_config(), bound).proposed.candidate == candidate(
        max_num_seqs=32, learner=LearnerCost(1, 2048, 0.0, 1e-3, 1.0)
    )


def test_a_plan_is_printed_with_what_was_measured_and_what_is_to_be_pasted():
    plan = make_plan(run_config(), machine(notes=("a compiled engine: no compiler",)))
    text = "\n".join(plan_lines(plan))
    for said in ("2 CPUs", "at 64", "a compiled engine: no compiler", "[engine]\ncount = "):
        assert said in text
    assert {one.mode for one in plan.modes} == {"sync", "one_step", "in_flight", "dora"}
    assert json.loads(json.dumps(plan_json(plan)))["proposed"]["engine.count"] == 1
    assert toml_lines(candidate()).splitlines()[:5] == [
        "[engine]",
        "count = 1",
        "threads = 1",
        "max_num_seqs = 64",
        "compile = false",
    ]


def test_a_machine_that_others_use_is_said_to_be_one():
    shared = replace(engine(), replays=(replayed(8, others=0.7),))
    text = "\n".join(plan_lines(make_plan(run_config(), machine(engines=(shared,)))))
    assert "other processes kept 0.7 CPUs busy meanwhile" in text


def test_a_step_is_a_fixed_part_and_one_by_the_token():
    whole, half = Steps(2, 1.1, 10_000, 1.0), Steps(2, 0.6, 5_000, 1.0)
    found = learner_costs(1, whole, half, {4096: Steps(2, 0.9, 10_000, 1.0)}, 2048)
    assert [one.micro_batch_tokens for one in found] == [2048, 4096]
    assert found[0].fixed == pytest.approx(0.1) and found[0].per_token == pytest.approx(1e-4)
    assert found[1].step_seconds(10_000) == pytest.approx(0.9)


def test_tasks_come_from_the_environments_by_their_weights():
    config = run_config(env=[{"id": "calculator", "weight": 9}, {"id": "memory"}])
    labels = [table.label for table, _ in tasks_of(config, 200)]
    assert 160 < labels.count("calculator") < 195


def test_samples_are_repeated_where_there_are_fewer():
    assert len(limited([[played()] * 8], 20)) == 20


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": {"device": "cuda"}}, 'engine.device is "cuda"'),
        ({"learner": {"device": "cuda"}}, 'learner.device is "cuda"'),
        ({"learner": {"ranks": 2}}, "learner.ranks is 2"),
        ({"learner": {"lora": {"rank": 4, "alpha": 8, "targets": ["o_proj"]}}}, "learner.lora"),
        ({"cluster": {"address": "auto"}}, "cluster.address is 'auto'"),
    ],
)
def test_what_cannot_be_known_is_refused(changes, said):
    with pytest.raises(ConfigError, match="plan --here") as error:
        refuse(run_config(**changes))
    assert said in str(error.value)


def test_options_of_a_sweep_are_refused():
    refuse_sweep("", "")
    with pytest.raises(ConfigError, match="2,3"):
        refuse_sweep("", "2,3")


@pytest.mark.process
def test_a_probe_answers_fails_and_leaves_nothing(tmp_path):
    with Probe("a counter", tmp_path, Counter) as probe:
        assert probe.ask(SECONDS, Counter.add, 2, 3) == 5
        with pytest.raises(ProbeError, match=r"^a counter: no such thing$"):
            probe.ask(SECONDS, Counter.fail)
        child = psutil.Process(probe.ask(SECONDS, Counter.start))
        slow = probe.begin(Counter.wait, 600)
        with pytest.raises(ProbeError, match=r"no answer within 0\.1 s"):
            slow(0.1)
    assert psutil.wait_procs([child], timeout=30)[1] == []
    with (
        Probe("a counter", tmp_path, Counter) as probe,
        pytest.raises(ProbeError, match="has ended: out of memory"),
    ):
        probe.ask(SECONDS, Counter.end)


PROBING = """
import sys
from pathlib import Path
from counter_probe import Counter
from rl.planning.probe import Probe

if __name__ == "__main__":
    with Probe("a counter", Path(sys.argv[1]), Counter) as probe:
        print(probe.process.pid, probe.ask(300, Counter.start), flush=True)
        probe.ask(600, Counter.wait, 600)
"""


@pytest.mark.process
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_a_probe_ends_with_who_started_it(tmp_path, sign):
    script = tmp_path / "probing.py"
    script.write_text(PROBING, encoding="utf-8")
    variables = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    asking = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=variables,
        text=True,
        encoding="utf-8",
    )
    with asking:
        assert asking.stdout is not None
        left = [psutil.Process(int(pid)) for pid in asking.stdout.readline().split()]
        asking.send_signal(sign)
    assert len(left) == 2
    assert psutil.wait_procs(left, timeout=30)[1] == []
