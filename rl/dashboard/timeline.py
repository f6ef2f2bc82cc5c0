"""The timeline of a run as plain data: lanes of bars, thinned to what a stretch of time can show.

In: spans of events.jsonl and what the status says of now. Out: bars with a colour and a sentence, at most
`MAX_BARS` of them; the share of the stretch in which the learner and each engine did nothing; the versions
over time. Colour is the policy version: a learner's step has that of the version it makes, an engine that of
the version it serves.
"""

import functools
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rl.dashboard.run_data import LATEST, RunData, Span

# What a browser draws without a pause; beyond so many lanes nobody reads them.
MAX_BARS = 2000
MAX_LANES = 48
# A stretch is divided in so many parts, and bars of a lane that are smaller are drawn as one.
_PARTS = 800
_ENV_BARS = 800
Kind = Literal["version", "wait", "load", "sleep", "save", "stage", "flight", "change"]
_VERSION = re.compile(r"(?:step|version) (\d{1,9})")
_KINDS: tuple[tuple[str, Kind], ...] = (
    ("wait for ", "wait"),
    ("idle", "wait"),
    ("load ", "load"),
    ("asleep", "sleep"),
    ("checkpoint ", "save"),
)


@dataclass(frozen=True)
class Bar:
    """Lane number, unix seconds, what colours it, and what is said of it.

    level: of kind "version" the version; of "flight" the share of the most groups that are in flight.
    """

    lane: int
    start: float
    end: float
    kind: Kind
    level: float
    text: str


@dataclass(frozen=True)
class Timeline:
    """Lanes from top to bottom, their bars, and per lane of learner and engines its idle share (0 to 1)."""

    lanes: tuple[str, ...]
    bars: tuple[Bar, ...]
    idle: dict[str, float]


def extent(run: RunData) -> tuple[float, float] | None:
    """First and last moment of which something is known (unix seconds); None before the first event."""
    if not run.spans:
        return None
    begin = min(span.start for span in run.spans)
    end = max(span.end for span in run.spans)
    if run.status is not None and run.summary is None:
        end = max(end, min(run.status.time, LATEST))
    return begin, max(end, begin + 1e-3)


def timeline(run: RunData, start: float, end: float) -> Timeline:
    """The stretch from start to end (unix seconds)."""
    spans = [s for s in (*run.spans, *serving_now(run)) if s.end >= start and s.start <= end]
    lanes: dict[str, list[Span]] = defaultdict(list)
    flights: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        if span.lane == "rollout":
            flights[span.name].append(span)
        elif span.lane != "window":
            lanes[span.lane].append(span)
    names = sorted(lanes, key=_rank)[:MAX_LANES]
    envs = sorted(flights)[: max(0, MAX_LANES - len(names))]
    least = (end - start) / _PARTS
    every = [_bars(number, lanes[name]) for number, name in enumerate(names)]
    bars: list[Bar] = []
    while True:
        for number, found in enumerate(every):
            bars += _merged(number, found, least)
        over = len(bars) / (MAX_BARS - _ENV_BARS)
        if over <= 1 or least > end - start:
            break
        bars, least = [], max(2.0, over / 2) * least
    parts = _ENV_BARS // max(1, len(envs))
    most, counted = _in_flight({env: flights[env] for env in envs}, start, end, parts)
    for number, env in enumerate(envs, len(names)):
        bars += _flight_bars(number, env, counted[env], most, start, (end - start) / parts)
    idle = {n: share for n in names if (share := idle_share(n, lanes[n], start, end)) is not None}
    return Timeline((*names, *envs), tuple(bars), idle)


def serving_now(run: RunData) -> list[Span]:
    """Spans of the versions that engines serve now: no event tells of one before the next load."""
    if run.status is None or run.summary is not None:
        return []
    last: dict[str, float] = {}
    for span in run.spans:
        if span.lane in run.status.engines and span.name.startswith("load "):
            last[span.lane] = max(span.end, last.get(span.lane, 0.0))
    began = max((s.end for s in run.spans if s.name == "engines start"), default=None)
    now, found = min(run.status.time, LATEST), []
    for name, version in run.status.engines.items():
        since = last.get(name, began)
        if version is not None and since is not None and since < now:
            found.append(Span(name, f"version {version}", since, now))
    return found


def idle_share(lane: str, spans: Sequence[Span], start: float, end: float) -> float | None:
    """Share of the stretch in which the learner or an engine did nothing; None for other lanes.

    The learner is at work in steps and checkpoints. An engine is not while it loads, sleeps, or has no
    request; where it was not yet, or is no more, does not count.
    """
    if lane == "learner":
        first, last = min(s.start for s in spans), max(s.end for s in spans)
        whole = min(end, last) - max(start, first)
        work = _covered((s for s in spans if _kind(s) in ("version", "save")), start, end)
        return None if whole <= 0 else max(0.0, 1 - work / whole)
    if not lane.startswith("engine"):
        return None
    there = _covered(spans, start, end)
    rest = _covered((s for s in spans if _kind(s) in ("wait", "load", "sleep")), start, end)
    return None if there <= 0 else min(1.0, rest / there)


def version_lines(run: RunData) -> dict[str, list[list[float]]]:
    """[unix seconds, version] per line: the learner's, the newest published, the oldest that lives."""
    made: list[list[float]] = []
    published: list[list[float]] = []
    oldest: list[list[float]] = []
    for span in run.spans:
        found = _VERSION.match(span.name)
        if span.lane == "window":
            versions = [int(v) for v in re.findall(r"\b\d{1,9}\b", span.name)]
            if versions:
                oldest.append([span.end, float(min(versions))])
        elif found and span.lane == "learner":
            made.append([span.end, float(found.group(1))])
        elif found and span.lane == "sync":
            published.append([span.end, float(found.group(1))])
    named = {"learner": made, "newest published": published, "oldest live": oldest}
    return {name: _thinned(sorted(points)) for name, points in named.items() if points}


def _thinned(points: list[list[float]], most: int = 500) -> list[list[float]]:
    every = -(-len(points) // most)
    return points if every <= 1 else [*points[::every], points[-1]]


def _rank(lane: str) -> tuple[int, int, str]:
    """Run, learner, sync, engines by number, supervision."""
    order = {"run": 0, "learner": 1, "sync": 2, "supervision": 4}
    number = re.search(r"(\d{1,9})$", lane)
    return order.get(lane, 3), int(number.group(1)) if number else 0, lane


def _kind(span: Span) -> Kind:
    return "change" if span.lane == "supervision" else _kind_of(span.name)


@functools.lru_cache(maxsize=10_000)
def _kind_of(name: str) -> Kind:
    if _VERSION.match(name):
        return "version"
    for prefix, kind in _KINDS:
        if name.startswith(prefix):
            return kind
    return "stage"


def _bars(number: int, spans: Sequence[Span]) -> list[Bar]:
    """In the order of time. Of an engine's version, what is left between its bubbles."""
    bars = []
    for span in sorted(_without_bubbles(spans), key=lambda s: (s.start, -s.end)):
        found = _VERSION.match(span.name)
        level = float(found.group(1)) if found else 0.0
        text = f"{span.lane}: {span.name}{f' ({span.what})' if span.what else ''}"
        bars.append(Bar(number, span.start, span.end, _kind(span), level, text))
    return bars


def _without_bubbles(spans: Sequence[Span]) -> Iterator[Span]:
    bubbles = sorted((s for s in spans if _kind(s) in ("wait", "sleep")), key=lambda s: s.start)
    starts = [bubble.start for bubble in bubbles]
    for span in spans:
        if _kind(span) != "version" or span.lane == "learner":
            yield span
            continue
        at = span.start
        first = max(0, bisect_left(starts, span.start) - 1)
        for index in range(first, bisect_left(starts, span.end)):
            bubble = bubbles[index]
            if bubble.start > at:
                yield replace(span, start=at, end=bubble.start)
            at = max(at, bubble.end)
        if at < span.end or at == span.start:
            yield replace(span, start=at)


def _merged(lane: int, bars: Sequence[Bar], least: float) -> list[Bar]:
    """Runs of bars that are shorter than `least` as one bar each; kinds stay apart."""
    found: list[Bar] = []
    tiny: dict[str, list[Bar]] = defaultdict(list)

    def close(kind: str) -> None:
        if held := tiny.pop(kind, []):
            end = max(bar.end for bar in held)
            text = held[0].text
            if len(held) > 1:
                seconds = sum(bar.end - bar.start for bar in held)
                text = f"{text} and {len(held) - 1} more, {seconds:.3g} s together"
            found.append(Bar(lane, held[0].start, end, held[0].kind, held[0].level, text))

    for bar in bars:
        if bar.end - bar.start >= least:
            found.append(bar)
            continue
        if (held := tiny[bar.kind]) and bar.end - held[0].start > least:
            close(bar.kind)
        tiny[bar.kind].append(bar)
    for kind in list(tiny):
        close(kind)
    return sorted(found, key=lambda b: (b.start, -b.end))


def _in_flight(
    flights: dict[str, list[Span]], start: float, end: float, parts: int
) -> tuple[float, dict[str, list[float]]]:
    """Mean number of groups in flight per environment and part of the stretch, and the highest of them."""
    width = (end - start) / parts
    counted: dict[str, list[float]] = {}
    for env, spans in flights.items():
        edges = [0.0] * (parts + 2)  # how much each part's count differs from the one before it
        for span in spans:
            first = (max(start, span.start) - start) / width
            last = (min(end, span.end) - start) / width
            for position, sign in ((first, 1.0), (last, -1.0)):
                part = min(int(position), parts - 1)
                within = 1 - (position - part)
                edges[part] += sign * within
                edges[part + 1] += sign * (1 - within)
        total, levels = 0.0, []
        for step in edges[:parts]:
            total += step
            levels.append(max(0.0, total))
        counted[env] = levels
    return max((max(levels) for levels in counted.values()), default=0.0), counted


def _flight_bars(
    lane: int, env: str, levels: Sequence[float], most: float, start: float, width: float
) -> list[Bar]:
    bars = []
    for part, level in enumerate(levels):
        if level > 0.005 * most:
            at = start + part * width
            text = f"{env}: {level:.3g} groups in flight on average"
            bars.append(Bar(lane, at, at + width, "flight", level / most, text))
    return bars


def _covered(spans: Iterable[Span], start: float, end: float) -> float:
    """Seconds of the stretch in which at least one of the spans is."""
    total, until = 0.0, start
    for span in sorted(spans, key=lambda s: s.start):
        first, last = max(span.start, until), min(span.end, end)
        if last > first:
            total += last - first
            until = last
    return total
