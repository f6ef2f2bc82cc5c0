"""The clock of a check: every source of time moves, and `datetime` stays what it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent
SCRIPT = """
import datetime, json, time
from datetime import datetime as known_before
from pydantic import BaseModel
from rl.env_tools.check.clock import Clock

class Record(BaseModel):
    at: datetime.datetime

def read():
    return {
        "time": time.time(), "time_ns": time.time_ns() / 1e9,
        "monotonic": time.monotonic(), "monotonic_ns": time.monotonic_ns() / 1e9,
        "perf_counter": time.perf_counter(), "perf_counter_ns": time.perf_counter_ns() / 1e9,
        "localtime": time.mktime(time.localtime()), "gmtime": time.mktime(time.gmtime()),
        "strftime": time.mktime(time.strptime(time.strftime("%Y-%m-%d %H:%M:%S"), "%Y-%m-%d %H:%M:%S")),
        "ctime": time.mktime(time.strptime(time.ctime())),
        "now": datetime.datetime.now().timestamp(),
        "now_utc": datetime.datetime.now(datetime.UTC).timestamp(),
        "known_before": known_before.now().timestamp(),
        "utcnow": datetime.datetime.utcnow().timestamp(), "today": datetime.datetime.today().timestamp(),
        "date": datetime.datetime.combine(datetime.date.today(), datetime.time()).timestamp(),
    }

first = read()
clock = Clock(86400.0 * 3)
clock.install()
clock.advance(86400.0)
second = read()
assert Record(at=datetime.datetime.now()).at > known_before(2020, 1, 1)
assert isinstance(datetime.datetime.now(), known_before)
print(json.dumps({name: second[name] - first[name] for name in first}))
"""


def test_every_source_of_time_is_moved_by_as_much():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        encoding="utf-8",
    )
    moved = json.loads(done.stdout)
    assert {name: round(seconds / 86400, 1) for name, seconds in moved.items()} == dict.fromkeys(
        moved, 4.0
    )
