"""The dashboard beside a run: how much it slows the run, and how soon a page shows what has happened.

    python benchmarks/dashboard_live.py [--pairs N] [--steps N] [--json FILE]

Quickstart runs on real engines. In pairs, one with `dorado dashboard` beside it and its list of trajectories
and its timeline open in Chromium, one without:

    seconds of a step with the dashboard over those without, median of the pairs
    CPU seconds of the dashboard's process per second of training

Chromium, which is elsewhere as a rule, gets in them only what time the run leaves over. In one run more it
has the priority of the run, and its pages note when they change; nobody asks them before that run is over:

    from the end of a group to a list that counts its trajectories, median and longest
    from the end of a span of the learner to a timeline that has it, median and longest
    CPU seconds of Chromium per second of training, and how much slower a step was

Targets: 3 % slower, 3 s to the list. Exits with 1 where one is missed. The first cold start takes minutes.
"""

import argparse
import json
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import psutil
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from screenshots import CHROMIUM, served  # noqa: E402  # pyright: ignore[reportMissingImports]

TARGETS = {"slower": 1.03, "seen_seconds": 3.0}
# Engines and learner warm up in them.
FIRST_STEPS = 3
# A browser that gets little time takes long to open a page.
GIVE_UP_SECONDS = 120.0
# What a page notes: when, in unix seconds, it first shows what. Of the chart: the end of
# the learner's last bar.
NOTE_COUNT = """() => {
  window.noted = [];
  const note = () => {
    const found = document.querySelector(".page").textContent.match(/([\\d,]+) trajectories/);
    const count = found ? Number(found[1].replaceAll(",", "")) : 0;
    if (count !== window.noted.at(-1)?.[1]) window.noted.push([Date.now() / 1000, count]);
  };
  setInterval(note, 250);
}"""
NOTE_REACH = """begin => {
  window.noted = [];
  const { chart } = getElement(Number(document.querySelector(".nicegui-echart").id.slice(1)));
  chart.on("finished", () => {
    const { yAxis, series } = chart.getOption();
    const lane = yAxis[0].data.indexOf("learner");
    const ends = series[0].data.filter(bar => bar.value[0] === lane).map(bar => bar.value[2]);
    const reach = begin + Math.max(...ends);
    if (reach !== window.noted.at(-1)?.[1]) window.noted.push([Date.now() / 1000, reach]);
  });
}"""


def start(runs: Path, name: str, steps: int) -> subprocess.Popen[bytes]:
    """A quickstart of so many steps."""
    settings = ("--name", name, "--runs_dir", str(runs), "--steps", str(steps))
    quiet = ("--eval.before", "false", "--eval.after", "false", "--wandb.enabled", "false")
    return subprocess.Popen(
        [sys.executable, "-m", "rl", "train", "configs/quickstart.toml", *settings, *quiet],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )


def step_seconds(run: Path) -> float:
    """Mean seconds of a step."""
    lines = [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return fmean(m["time/total_seconds"] for m in lines if m["step"] > FIRST_STEPS)


def watched(runs: Path, name: str, steps: int, *, aside: bool) -> dict[str, Any]:
    """A run with the dashboard beside it. aside: Chromium gets idle time only."""
    run = runs / name
    process = start(runs, name, steps)
    with served(runs) as server, sync_playwright() as playwright:
        [dashboard] = [p for p in psutil.Process().children() if "dashboard" in p.cmdline()]
        flags = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        program = runs / "chromium"
        program.write_text(
            f'#!/bin/sh\nexec {"chrt --idle 0" if aside else ""} {CHROMIUM} "$@"\n',
            encoding="utf-8",
        )
        program.chmod(0o755)
        browser = playwright.chromium.launch(executable_path=str(program), args=flags)
        while process.poll() is None and not _lines(run / "metrics.jsonl"):
            time.sleep(0.2)
        listed, lanes = browser.new_page(), browser.new_page()
        for page in (listed, lanes):
            page.set_default_timeout(1000 * GIVE_UP_SECONDS)
        listed.goto(f"{server}/run/{name}/trajectories")
        lanes.goto(f"{server}/run/{name}/timeline?from=-60")
        lanes.wait_for_selector("canvas")
        if not aside:
            listed.evaluate(NOTE_COUNT)
            first = min(event["start"] for event in _lines(run / "events.jsonl"))
            lanes.evaluate(NOTE_REACH, first)
        opened = time.time()
        began, cpu, browsing = time.monotonic(), _cpu([dashboard]), _cpu(_chromium())
        # Whatever the run does last, its engines end then: as long as these pages are looked at.
        while process.poll() is None and len(_lines(run / "metrics.jsonl")) < steps:
            time.sleep(0.5)
        seconds = time.monotonic() - began
        cpu, browsing = _cpu([dashboard]) - cpu, _cpu(_chromium()) - browsing
        time.sleep(2 * TARGETS["seen_seconds"])
        noted = [] if aside else [page.evaluate("window.noted") for page in (listed, lanes)]
        assert process.wait() == 0
        browser.close()
    happened = (groups(run), learner_spans(run))
    return {
        "seconds": step_seconds(run),
        "cpu": cpu / seconds,
        "chromium_cpu": browsing / seconds,
        "delays": [
            delays(what, when, opened, opened + seconds)
            for what, when in zip(happened, noted, strict=False)
        ],
    }


def groups(run: Path) -> list[tuple[float, float]]:
    """When a group had ended, and how many trajectories there were then."""
    index = sqlite3.connect(f"file:{run / 'trajectories.sqlite'}?mode=ro", uri=True, timeout=5)
    sizes = dict(index.execute("select grp, count(*) from trajectories group by grp").fetchall())
    index.close()
    ended = [e for e in _lines(run / "events.jsonl") if e["lane"] == "rollout"]
    found, count = [], 0
    for event in ended:  # in the order in which the index has them
        count += sizes[event["group"]]
        found.append((event["end"], count))
    return found


def learner_spans(run: Path) -> list[tuple[float, float]]:
    """When a span had ended: twice, for the timeline reaches a moment."""
    return [(e["end"], e["end"]) for e in _lines(run / "events.jsonl") if e["lane"] == "learner"]


def delays(
    happened: list[tuple[float, float]],
    noted: list[tuple[float, float]],
    opened: float,
    closed: float,
) -> list[float]:
    """Seconds from each moment to the first note of its level or more; infinite where there is none."""
    found = []
    for moment, level in happened:
        if opened < moment < closed:
            # Milliseconds: a level that was in a browser and back.
            seen = (at for at, shown in noted if shown >= level - 1e-3)
            found.append(max(0.0, next(seen, math.inf) - moment))
    return found


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    return [
        json.loads(line)
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True)
        if line[-1] == "\n"
    ]


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _chromium() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "chrom" in p.name()]


def main() -> int:
    """Print the figures; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    alone: list[float] = []
    looks: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        assert start(runs, "warm-up", 1).wait() == 0
        for pair in range(given.pairs):
            # In turns, so that neither always comes first.
            if pair % 2:
                looks.append(watched(runs, f"with-{pair}", given.steps, aside=True))
            assert start(runs, f"without-{pair}", given.steps).wait() == 0
            if not pair % 2:
                looks.append(watched(runs, f"with-{pair}", given.steps, aside=True))
            alone.append(step_seconds(runs / f"without-{pair}"))
            with_it, cpu = looks[-1]["seconds"], looks[-1]["cpu"]
            print(
                f"pair {pair}: {alone[-1]:.2f} s a step, {with_it:.2f} s beside it; cpu {cpu:.3f}"
            )
        seen = watched(runs, "seen", given.steps, aside=False)
    listed, lanes = seen["delays"]
    found = {
        "slower": median(look["seconds"] / one for look, one in zip(looks, alone, strict=True)),
        "cpu_share": fmean(look["cpu"] for look in looks),
        "seen_seconds": max(listed),
        "seen_median_seconds": median(listed),
        "timeline_seconds": max(lanes),
        "timeline_median_seconds": median(lanes),
        "chromium_cpu_share": seen["chromium_cpu"],
        "slower_with_chromium": seen["seconds"] / median(alone),
    }
    print(json.dumps(found, indent=1))
    if given.json:
        given.json.write_text(json.dumps(found), encoding="utf-8")
    missed = any(found[name] > target for name, target in TARGETS.items())
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
