"""Batches from shards: streams of windows that make the global batch, and the copies that they read.

A global batch is cut into slots of at most `microbatch_seconds`, whatever the number of processes. Each slot has a stream of
its own, over every so-manieth shard of one shuffled sequence of all shards, epoch after epoch. A stream opens a window of a
few shards, plans batches of like lengths from the recordings in it, takes as many steps from it as it holds speech by the
index, and goes on to the next one. So every step is a function of (seed, step) and the index, whoever computes it, and nobody
ever needs the lengths of more than one window of each slot. Slots are cut further where the number of processes does not
divide them.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AudioError, UserError
from ..randomness import generator, integer
from .batching import Crop, LengthBucketSampler, Microbatches, check_room, count_microbatches
from .io import SAMPLE_RATE
from .shards import Shard, copy_shard

log = logging.getLogger(__name__)

# Visits to a recording inside one window are counted below this number. A prime, so that fixed crops, which are taken in turn
# by the number of the visit, all have their turn.
_VISITS = 1009
_SPARES = 3  # other shards that are tried in place of one that cannot be read


@dataclass(frozen=True, slots=True)
class ShardCrop(Crop):
    """A crop of the recording `index` of `shard`, by its number."""

    shard: int = 0


@dataclass
class _Window:
    """Shards (with the number of the visit to each) that a slot reads from step `first` on; `offsets` in their recordings."""

    first: int
    shards: list[tuple[int, int]]
    offsets: np.ndarray
    sampler: LengthBucketSampler


class ShardSampler:
    """Batches from shards, addressed by step as those of `LengthBucketSampler`, whose parameters it shares.

    Args:
        shards: What to read.
        window_mb: Megabytes of the shards that a slot reads together; at least one shard.

    Raises:
        UserError: Nothing can be used, or a crop exceeds a batch.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        batch_seconds: float,
        crop_seconds: float,
        min_seconds: float = 0.0,
        max_trim: float = 0.05,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        microbatch_seconds: float = math.inf,
        fixed_crops: int = 0,
        frame_multiple: int = 1,
        window_mb: float = 1024.0,
    ):
        self.shards, self.seed, self.rank, self.world = shards, seed, rank, world
        self.slots = count_microbatches(batch_seconds, microbatch_seconds)
        self.microbatches = count_microbatches(batch_seconds, microbatch_seconds, world)
        self.accumulate = self.microbatches // world
        self.pieces = self.microbatches // self.slots  # of each slot
        self.batch_seconds, self.slot_seconds = batch_seconds, batch_seconds / self.slots
        self._options = (self.slot_seconds, crop_seconds, min_seconds, max_trim)
        self._crops = {"fixed_crops": fixed_crops, "frame_multiple": frame_multiple}
        self.seconds = [shard.usable_seconds(crop_seconds, min_seconds) for shard in shards]
        self._usable = [number for number, seconds in enumerate(self.seconds) if seconds > 0]
        if not self._usable:
            raise UserError(f"No shard holds speech of {min_seconds:g} s: lower data.min_seconds.")
        longest = min(crop_seconds, max(shards[number].longest for number in self._usable))
        check_room(batch_seconds, longest, self.microbatches, world)
        if len(self._usable) < len(shards):
            few = len(shards) - len(self._usable)
            log.warning("%d shards hold no speech of %g s and are passed over", few, min_seconds)
        mean = sum(shards[number].bytes for number in self._usable) / len(self._usable)
        self.per_window = max(1, min(int(window_mb * 1e6 / mean), len(self._usable) // self.slots))
        self._orders: OrderedDict[int, np.ndarray] = OrderedDict()
        self._starts: list[list[int]] = [[0] for _ in range(self.slots)]  # first steps of the windows of each slot
        self._windows: OrderedDict[tuple[int, int], _Window] = OrderedDict()

    @property
    def steps_per_epoch(self) -> float:
        """Optimiser steps in which every recording is read once, on average."""
        return sum(self.seconds) / self.batch_seconds

    def batch(self, step: int, rank: int | None = None) -> Microbatches:
        """The microbatches of `rank` (by default the sampler's own) in an optimiser step, counted from 0."""
        rank = self.rank if rank is None else rank
        frames, parts, epoch = 0, [], 0
        for slot in range(self.slots):
            window = self._window(slot, step)
            planned = window.sampler.batch(step - window.first)
            frames += planned.planned_frames
            for piece in range(self.pieces):
                if (slot * self.pieces + piece) // self.accumulate == rank:
                    parts.append(tuple(self._crop(window, crop) for crop in planned.parts[0][piece :: self.pieces]))
                    epoch = window.shards[0][1]
        return Microbatches(step, epoch, tuple(parts), frames)

    def needed(self, step: int) -> tuple[set[int], set[int]]:
        """The shards that this rank reads in a step, and those of the windows after."""
        now: set[int] = set()
        soon: set[int] = set()
        parts = range(self.rank * self.accumulate, (self.rank + 1) * self.accumulate)
        for slot in {part // self.pieces for part in parts}:
            number = self._number(slot, step)
            now.update(shard for shard, _ in self._shards_of(slot, number))
            soon.update(shard for shard, _ in self._shards_of(slot, number + 1))
        return now, soon - now

    def _crop(self, window: _Window, crop: Crop) -> ShardCrop:
        place = int(np.searchsorted(window.offsets, crop.index, side="right")) - 1
        shard, visit = window.shards[place]
        epoch = visit * _VISITS + crop.epoch
        start = window.sampler.start(crop.index, epoch, crop.samples)
        return ShardCrop(crop.index - int(window.offsets[place]), epoch, start, crop.samples, shard)

    def _shards_of(self, slot: int, number: int) -> list[tuple[int, int]]:
        """The shards of a window of a slot, each with its visit: a place in the sequence of all epochs, one after another."""
        count = len(self._usable)
        found: list[tuple[int, int]] = []
        for k in range(number * self.per_window, (number + 1) * self.per_window):
            epoch, place = divmod(slot + k * self.slots, count)
            if epoch not in self._orders:
                self._orders[epoch] = generator(self.seed, "shards", epoch).permutation(count)
                while len(self._orders) > 4:
                    self._orders.popitem(last=False)
            found.append((self._usable[self._orders[epoch][place]], epoch))
        return found

    def _number(self, slot: int, step: int) -> int:
        """The window of a slot in a step. How long each lasts is known from the index alone."""
        starts = self._starts[slot]
        while starts[-1] <= step:
            lasting = sum(self.seconds[shard] for shard, _ in self._shards_of(slot, len(starts) - 1))
            starts.append(starts[-1] + max(1, round(lasting / self.slot_seconds)))
        return bisect_right(starts, step) - 1

    def _window(self, slot: int, step: int) -> _Window:
        number = self._number(slot, step)
        key = (slot, number)
        if key not in self._windows:
            shards = self._shards_of(slot, number)
            lengths = [self.shards[shard].samples() for shard, _ in shards]
            sampler = LengthBucketSampler(
                np.concatenate(lengths) / SAMPLE_RATE, *self._options, integer(self.seed, "window", slot, number),
                **self._crops,
            )  # fmt: skip
            offsets = np.cumsum([0, *(len(part) for part in lengths[:-1])])
            self._windows[key] = _Window(self._starts[slot][number], shards, offsets, sampler)
            while len(self._windows) > 3 * self.slots:  # the loader plans ahead of the loop
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return self._windows[key]


class Spool:
    """Whole copies of the shards that are being read, in a local folder; each read from its storage once, in one go.

    A shard that cannot be read any more is replaced by another one, with a warning and a row for `report`.
    """

    def __init__(self, shards: Sequence[Shard], folder: Path, report: Callable[[dict[str, Any]], None]):
        self.shards, self.folder, self.report = shards, folder, report
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made ({error.strerror}): name another as data.spool.") from error
        self._reader: ThreadPoolExecutor | None = None
        self._copies: dict[int, Future[None]] = {}
        self._last: dict[int, int] = {}  # when each was needed last
        self._owner = weakref.finalize(self, _remove, folder, os.getpid())

    def hold(self, shard: Shard) -> Path:
        """A copy that stays until the end. Raises `UserError` when the shard cannot be read."""
        target = self.folder / f"held-{shard.digest}.tar"
        copy_shard(shard, target)
        return target

    def need(self, step: int, now: set[int], soon: set[int], linger: int) -> None:
        """Wait for the shards `now`, begin to read those of `soon`, and drop what no step since `step - linger` needed."""
        if self._reader is None:  # not before the loader's workers were forked
            self._reader = ThreadPoolExecutor(1, "shards")
        for number in [*sorted(now), *sorted(soon)]:
            if number not in self._copies:
                self._copies[number] = self._reader.submit(self._copy, number, step)
            # the loop asks for a step that was dealt long ago
            self._last[number] = max(step, self._last.get(number, 0))
        for number in now:
            self._copies[number].result()
        for number in [n for n, last in self._last.items() if last < step - linger]:
            del self._copies[number], self._last[number]
            spooled(self.folder, number).unlink(missing_ok=True)

    def close(self) -> None:
        """Stop reading, and remove the copies."""
        if self._reader is not None:
            self._reader.shutdown(wait=True, cancel_futures=True)
        self._owner()

    def _copy(self, number: int, step: int) -> None:
        order = generator("spare", self.shards[number].digest).permutation(len(self.shards)).tolist()
        sources = [number, *(other for other in order if other != number)][: 1 + _SPARES]
        for source in sources:
            try:
                return copy_shard(self.shards[source], spooled(self.folder, number))
            except AudioError as error:
                self.report({"path": self.shards[source].path, "reason": error.reason, "step": step})
                if source == sources[-1]:
                    advice = "No other shard can be read either: is their storage still there? Go on with --resume."
                    raise UserError(f"{error} {advice}") from error
                log.warning("%s Another shard takes its place.", error)
        raise AssertionError


def spooled(folder: Path, number: int) -> Path:
    """Where the copy of a shard is."""
    return folder / f"{number}.tar"


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # the loader's workers are copies of the one that owns it
        shutil.rmtree(folder, ignore_errors=True)
