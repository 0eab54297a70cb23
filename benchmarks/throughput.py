"""What the data pipeline, logging and averages cost of a training step, in the digits configuration.

    chrt -r 1 python benchmarks/throughput.py            # a minute; chrt keeps other programs from disturbing it

One run, measured in two ways that must agree. By replacing: of every three steps one is as it is, one gets a batch made
beforehand, and one leaves out logging and weight average; the medians are compared, so that a machine that slows down
slows all three. From inside: the time spent within these parts, which for logging includes the lines of the log, one in
25 steps. Times are processor time. The first steps, in which TensorBoard is imported, do not count. The exit status is 1
if data cost more than 3 % or logging and averages more than 2 %, by what was spent inside.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch

import scorefield as sf
from scorefield.training import EMA, Moment
from scorefield.training.batches import Feed
from scorefield.training.monitor import Observer
from scorefield.training.recipes import recipe

SKIPPED = 27
DATA, WATCH = "data", "logging and averages"
LIMITS = {DATA: 0.03, WATCH: 0.02}
KINDS = ("as it is", DATA, WATCH)


class Meter:
    """Knows which step it is, of which kind, and what each step and its parts took."""

    def __init__(self) -> None:
        self.step = 0
        self.ends = [time.process_time()]
        self.spent: dict[str, list[float]] = {DATA: [0.0], WATCH: [0.0]}

    @property
    def kind(self) -> str:
        """What the present step leaves out."""
        return KINDS[self.step % 3] if self.step >= SKIPPED else KINDS[0]

    def note(self, moment: Moment) -> None:
        """A step has ended."""
        self.step = moment.step
        self.ends.append(time.process_time())
        for values in self.spent.values():
            values.append(0.0)

    def part(self, name: str, work: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, timed; replaced by `otherwise` in the steps that leave it out."""

        def call(*args: Any, **options: Any) -> Any:
            if self.kind == name:
                return otherwise(*args, **options)
            begin = time.process_time()
            result = work(*args, **options)
            self.spent[name][-1] += time.process_time() - begin
            return result

        return call

    def reading(self, raw: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """The reader of raw items, timed or left out."""

        def read(feed: Feed, start: int, stop: int) -> Iterator[Any]:
            items = raw(feed, start, stop)
            pull = self.part(DATA, lambda: next(items), lambda: None)
            for _ in range(start, stop):
                yield pull()

        return read


def measure(steps: int) -> Meter:
    """Train the digits configuration under a meter."""
    meter, chosen, data = Meter(), recipe("digits"), sf.digits()
    model = chosen.build(data, 0)
    config = chosen.config.updated(steps=SKIPPED + steps, checkpoint_every=10**6)
    feed = Feed(data, config, model.sde)
    ready = feed.batch(0, next(iter(feed.raw(0, 1))), torch.device("cpu"))
    replaced = [
        (Feed, "batch", meter.part(DATA, Feed.batch, lambda *_: ready)),
        (Feed, "raw", meter.reading(Feed.raw)),
        (EMA, "update", meter.part(WATCH, EMA.update, lambda *_: None)),
        (Observer, "step", meter.part(WATCH, Observer.step, lambda *_: None)),
    ]
    with ExitStack() as stack, tempfile.TemporaryDirectory() as out:
        for owner, name, method in replaced:
            stack.enter_context(mock.patch.object(owner, name, method))
        sf.train(model, data, out=out, config=config, device="cpu", callbacks=[meter.note], progress=False)
    return meter


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    meter = measure(options.steps)
    took = [b - a for a, b in zip(meter.ends[:-1], meter.ends[1:], strict=True)]
    of_kind = {kind: [k for k in range(SKIPPED, len(took)) if KINDS[k % 3] == kind] for kind in KINDS}
    median = {kind: statistics.median(took[k] for k in steps) for kind, steps in of_kind.items()}
    print(f"a step: {1000 * median[KINDS[0]]:.1f} ms of one thread, {options.steps} steps")
    shares = {}
    for name, limit in LIMITS.items():
        present = [k for k in range(SKIPPED, len(took)) if KINDS[k % 3] != name]
        shares[name] = sum(meter.spent[name][k] for k in present) / sum(took[k] for k in present)
        replaced = 1 - median[name] / median[KINDS[0]]
        print(f"{name}: {shares[name]:.2%} from inside, {replaced:.2%} by replacing; at most {limit:.0%}")
    return int(any(shares[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
