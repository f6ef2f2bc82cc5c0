"""A run whose judge is killed, hangs, is slow and answers nonsense: what it costs, and what the status says.

    python benchmarks/judged_run.py [--user] [--phase SECONDS] [--folder DIR] [--json FILE]

A real `dorado train` (calculator, a new tiny policy, an engine on the CPU) with the judge `tool_critic` at a
stand-in for an OpenAI server, in this process, which goes through the ways above, `--phase` seconds each,
and is well in between. Then the run is asked to end. Printed for each way: requests by outcome, learner
steps, the line of `dorado status`. With `--user` the model is the user of `orders` in place of a judge, and
the policy has a short cold start, so that it asks. Exits with 1 where the run has not gone on, the books do
not balance, or a trajectory that the model failed has a reward.
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
episode = {{ max_turns = {turns}, max_completion_tokens = 24, max_tokens = {room}, max_seconds = 60 }}
engine = {{ count = 1, max_model_len = {room} }}
learner = {{ micro_batch_tokens = 512, threads = 1, optim = {{ lr = 1e-4 }} }}
model = {{ init = {{ family = "qwen3_moe" }} }}

[[models]]
name = "critic"
url = "http://127.0.0.1:{port}"
request_seconds = 3
hold_seconds = 120

[[env]]
"""
JUDGE = """
id = "calculator"
rewards = { solved = 1, tool_critic = 0.5 }
[[env.judge]]
id = "tool_critic"
model = "critic"
"""
USER = """
id = "orders"
config = { user = true }
user = { model = "critic" }
[sft]
demonstrations = 200
steps = 80
batch_size = 16
slip = 0.1
optim = { lr = 2e-3, warmup_steps = 20, decay_steps = 100 }
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
                said = "I would rather not." if way == "nonsense" else json.dumps(answer(body))
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


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """The judge's verdicts, or the user's text, by what is asked for."""
    properties = body["response_format"]["json_schema"]["schema"]["properties"]
    return says(body["messages"][0]["content"]) if "say" in properties else verdicts(body)


def says(prompt: str) -> dict[str, Any]:
    """The wish first, then the customer, until the policy is done or has said enough."""
    wish, customer = re.search(r"<wish \w+>\n(.*)\n", prompt), re.search(r"customer: (\w+)", prompt)
    assert wish and customer, prompt
    ends = "assistant: done" in prompt or prompt.count("assistant: ") > 3
    if "you speak first" in prompt:
        return {"asked": [], "say": wish[1], "ends": False}
    return {"asked": ["customer"], "say": "thanks" if ends else customer[1], "ends": ends}


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


def play(seconds: float, folder: Path, *, user: bool) -> dict[str, Any]:
    """Go through all ways beside a run. Returns the figures."""
    stand_in, config = StandIn(), folder / "judged.toml"
    turns, room = (6, 384) if user else (3, 128)
    text = CONFIG.format(folder=folder, port=stand_in.port, turns=turns, room=room)
    config.write_text(text + (USER if user else JUDGE), encoding="utf-8")
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
    return figures | (books(run, "orders", "user") if user else books(run, "calculator", "judge"))


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


def books(run: Path, env: str, who: str) -> dict[str, Any]:
    """The ledger, and what became of trajectories that the model failed. who: it was, judge or user."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    ledger = summary["ledger"][env]
    ended = sum(count for state, count in ledger.items() if state != "dispatched")
    lines = (run / "trajectories/controller-0.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    failed = [one for one in found if one["stop_reason"] == f"{who}_fault"]
    judged = [
        one for one in found if one["stop_reason"] in ("completed", "max_turns", "max_tokens")
    ]
    return {
        "ledger": ledger,
        "remainder": ledger["dispatched"] - ended,
        "judged": len(judged),
        "judged_without_the_model": sum(not heard(one) for one in judged),
        f"{who}_faults": len(failed),
        "faults_with_a_reward": sum(bool(one["rewards"]) for one in failed),
        "stop_reasons": dict(Counter(one["stop_reason"] for one in found)),
        "solved": sum(one["rewards"].get("solved", 0) for one in judged),
        "said": dict(Counter(re.sub(r"'.*'", "…", one["fault"]) for one in failed)),
    }


def heard(one: dict[str, Any]) -> bool:
    """True if the model has judged a trajectory, or opened it as its user."""
    return bool(one.get("judgements") or one["opening"][0].get("by", "").startswith("critic"))


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    options.add_argument("--user", action="store_true", help="The model is a user, and no judge.")
    options.add_argument("--phase", type=float, default=12.0)
    options.add_argument("--folder", type=Path)
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as made:
        figures = play(asked.phase, asked.folder or Path(made), user=asked.user)
    print(json.dumps(figures, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(figures), encoding="utf-8")
    went_on = figures["ways"]["well at last"]["steps"] > 0
    wrong = ("remainder", "faults_with_a_reward", "judged_without_the_model")
    return int(not went_on or any(figures[one] for one in wrong))


if __name__ == "__main__":
    sys.exit(main())
