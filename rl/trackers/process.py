"""The process of one tracker: `python -m rl.trackers.process ORDER`.

In: the `Order` as JSON, then the run folder, until standard input ends. Out: what the tracker writes or
sends, and on standard output a sentence for what has gone wrong. Every look touches the log, by which the run
knows that this process is alive. Whatever the tracker raises ends this process, or, where W&B goes on
offline, begins it anew.
"""

import importlib
import json
import os
import select
import signal
import sys
import tomllib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from rl.tracker_config import NotifyConfig, TrackersConfig, WandbConfig
from rl.trackers.feed import Feed
from rl.trackers.tracker import TRACKERS, Order, RunFacts, Tracker, say, tell

# Seconds between two looks, and from the end of the run to the end of this.
LOOK_SECONDS, FINISH_SECONDS = 1.0, 60


def facts(order: Order) -> RunFacts:
    """Read of which run an order is."""
    folder = Path(order.folder)
    config = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    return RunFacts(
        folder=folder,
        name=str(config["name"]),
        runs_dir=folder.parent,
        config=config,
        trackers=TrackersConfig.model_validate(config.get("trackers", {})),
        wandb=WandbConfig.model_validate(config.get("wandb", {})),
        notify=NotifyConfig.model_validate(config.get("notify", {})),
        order=order,
    )


def follow(tracker: Tracker, feed: Feed, ended: Callable[[], bool]) -> None:
    """Tell a tracker what the run writes, until it has ended and all is told. Raises what it raises.

    `ended()` waits a moment for the run's end, and says whether it has come.
    """
    over, told = False, None
    while True:
        for news in feed.read():
            tracker.take(news)
        tracker.look()
        if feed.position != told:
            tell(told := feed.position)
        os.utime(sys.stderr.fileno())
        if over:
            break
        over = ended()
    # What cannot be reached would be tried for ever.
    signal.alarm(FINISH_SECONDS)
    tracker.end(feed.ended())


def _input_ended() -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], LOOK_SECONDS)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1)


def make(order: Order) -> tuple[Tracker, Feed]:
    """Make the tracker of an order, and its feed."""
    run = facts(order)
    module, _, name = TRACKERS[order.tracker].partition(":")
    tracker: Tracker = getattr(importlib.import_module(module), name)(run)
    feed = Feed(order, tracker.hears, samples=run.trackers.samples, share=run.trackers.otel.share)
    return tracker, feed


def main() -> None:
    """Do what the order asks for."""
    order = Order(**json.loads(sys.argv[1]))
    # The run's own processes come first.
    os.nice(5)
    try:
        follow(*make(order), _input_ended)
    except ModuleNotFoundError as error:
        off = ", or wandb.enabled = false" if order.tracker == "wandb" else ""
        package = "wandb" if order.tracker == "wandb" else "'dorado-rl[trackers]'"
        say(f"{error.name} is not installed (pip install {package}{off})")
        _end()
    except Exception as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        if order.tracker == "wandb" and not order.offline:
            say(f"{said}; it goes on offline, and `wandb sync` sends that")
            # Anew, since what is left of W&B in this process may wait for its helper for ever.
            again = json.dumps(asdict(replace(order, offline=True)))
            os.execv(sys.executable, [sys.executable, "-m", "rl.trackers.process", again])
        say(f"{said}; it gets nothing more")
        _end()


def _end() -> None:
    """End without waiting for threads that a tracker has left."""
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
