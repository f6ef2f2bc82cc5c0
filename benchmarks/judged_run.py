"""A run whose judge is killed, hangs, is slow and answers nonsense: what it costs, and what the status says.

    python benchmarks/judged_run.py [--phase SECONDS] [--folder DIR] [--json FILE]

A real `dorado train` (calculator, a new tiny policy, an engine on the CPU) with the judge `tool_critic` at a
stand-in for an OpenAI server, in this process, which goes through the ways above, `--phase` seconds each,
and is well in between. Then the run is asked to end. Printed for each way: requests by outcome, learner
steps, the line of `dorado status`. Exits with 1 where the run has not gone on, the books do not balance, or a
trajectory that the judge failed has a reward.
"""

import argparse
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WAYS = ("well", "killed", "well again", "hung", "back", "slow", "nonsense", "well at last")
CONFIG = """
name = "judged"
runs_dir = "{folder}/runs"
steps = 100000
wandb = {{ enabled = false }}
eval = {{ before = false, after = false }}
batch = {{ groups = 4, group_size = 4, filter_zero_variance = false }}
episode = {{ max_turns = 3, max_completion_tokens = 24, max_tokens = 128, max_seconds = 60 }}
engine = {{ count = 1, max_model_len = 128 }}
learner = {{ micro_batch_tokens = 512, threads = 1, optim = {{ lr = 1e-4 }} }}
model = {{ init = {{ family = "qwen3_moe" }} }}

[[models]]
name = "critic"
url = "http://127.0.0.1:{port}"
request_seconds = 3
hold_seconds = 120

[[env]]
id = "calculator"
rewards = {{ solved = 1, tool_critic = 0.5 }}
[[env.judge]]
id = "tool_critic"
model = "critic"
"""


class StandIn:
    """A server that answers by rule, in whatever way it is told to be."""

    def __init__(self) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.way = "killed"
        self.server: ThreadingHTTPServer | None = None

    def be(self, way: str) -> None:
        """Change the way."""
        self.way = way
        if way == "killed" and self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None
        elif way != "killed" and self.server is None:
            self.server = ThreadingHTTPServer(("127.0.0.1", self.port), self.handler())
            threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """The handler of its requests."""
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply({"data": [{"id": "stand-in"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                way = stand_in.way
                while way == "hung" and stand_in.way == "hung":
                    time.sleep(0.2)
                time.sleep(2.0 if way == "slow" else 0.02)
                said = "I would rather not." if way == "nonsense" else json.dumps(verdicts(body))
                usage = {"prompt_tokens": 100, "completion_tokens": 10}
                self.reply({"choices": [{"message": {"content": said}}], "usage": usage})

            def reply(self, found: object) -> None:
                data = json.dumps(found).encode()
                try:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # who asked has given up
                    pass

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        return Handler


def verdicts(body: dict[str, Any]) -> dict[str, Any]:
    """Good for a turn that has made a call."""
    names = body["response_format"]["json_schema"]["schema"]["required"]
    text = body["messages"][0]["content"]
    said = {}
    for name in names:
        found = re.search(rf"<{name} \w+>\n(.*?)\n</{name}", text, re.S)
        good = found is not None and "call " in found[1]
        said[name] = {"reason": "by rule", "verdict": "good" if good else "bad"}
    return said


def play(seconds: float, folder: Path) -> dict[str, Any]:
    """Go through all ways beside a run. Returns the figures."""
    stand_in, config = StandIn(), folder / "judged.toml"
    config.write_text(CONFIG.format(folder=folder, port=stand_in.port), encoding="utf-8")
    stand_in.be("well")
    command = [sys.executable, "-m", "rl"]
    run, out = folder / "runs/judged", (folder / "out.log").open("w", encoding="utf-8")
    process = subprocess.Popen([*command, "train", str(config)], stdout=out, stderr=out)
    figures: dict[str, Any] = {"ways": {}}
    try:
        while steps(run) < 2:
            if process.poll() is not None:
                raise SystemExit(
                    f"the run has ended: {(folder / 'out.log').read_text('utf-8')[-2000:]}"
                )
            time.sleep(0.5)
        for way in WAYS:
            stand_in.be(way)
            begun, before = time.time(), steps(run)
            time.sleep(seconds)
            shown = subprocess.run(
                [*command, "status", str(run)], capture_output=True, text=True, encoding="utf-8"
            ).stdout
            line = re.sub(r"\s+", " ", shown[shown.find("model ") :].split("in flight")[0])
            figures["ways"][way] = {
                "steps": steps(run) - before,
                "calls": calls(run, begun),
                "status": line[:300],
            }
            print(way, figures["ways"][way], flush=True)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(900)
    return figures | books(run)


def steps(run: Path) -> int:
    """Steps that are in the run's metrics."""
    file = run / "metrics.jsonl"
    return file.read_text(encoding="utf-8").count("\n") if file.exists() else 0


def calls(run: Path, since: float) -> dict[str, int]:
    """Calls of the model that ended since then, by outcome."""
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    return dict(
        Counter(e["name"] for e in events if e["lane"] == "model critic" and e["end"] >= since)
    )


def books(run: Path) -> dict[str, Any]:
    """The ledger, and what became of trajectories that the judge failed."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    ledger = summary["ledger"]["calculator"]
    ended = sum(count for state, count in ledger.items() if state != "dispatched")
    lines = (run / "trajectories/controller-0.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    failed = [one for one in found if one["stop_reason"] == "judge_fault"]
    judged = [
        one for one in found if one["stop_reason"] in ("completed", "max_turns", "max_tokens")
    ]
    return {
        "ledger": ledger,
        "remainder": ledger["dispatched"] - ended,
        "judged": len(judged),
        "judged_without_a_judgement": sum(not one.get("judgements") for one in judged),
        "judge_faults": len(failed),
        "judge_faults_with_a_reward": sum(bool(one["rewards"]) for one in failed),
        "said": dict(Counter(re.sub(r"'.*'", "…", one["fault"]) for one in failed)),
    }


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    options.add_argument("--phase", type=float, default=12.0)
    options.add_argument("--folder", type=Path)
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as made:
        figures = play(asked.phase, asked.folder or Path(made))
    print(json.dumps(figures, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(figures), encoding="utf-8")
    went_on = figures["ways"]["well at last"]["steps"] > 0
    wrong = figures["remainder"], figures["judge_faults_with_a_reward"]
    return int(not went_on or any(wrong) or figures["judged_without_a_judgement"] > 0)


if __name__ == "__main__":
    sys.exit(main())
