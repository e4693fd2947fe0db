"""Which parts of which recordings make the batch of a step: counted in seconds, of like lengths, at any step directly.

A batch is a pure function of (seed, step): there is no state to save. One *global* batch of `batch_seconds` is planned and
then dealt out, so the same step sees the same crops of the same recordings however many processes and microbatches share
the work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..randomness import fraction, generator
from .io import SAMPLE_RATE

STRIDE, RECEPTIVE_FIELD = 320, 400  # samples: the encoders' frame grid, F = (T - 400) // 320 + 1

# A corpus with less than this many batches of audio is repeated within a plan, so that its batches are filled by
# recordings of like length rather than by cutting long ones down to short ones.
_BATCHES_PER_PLAN = 8


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of a recording: `samples` from `start`, counted at 16 kHz from the recording's start."""

    index: int  # of the recording
    epoch: int  # the visit to this recording: with its id, the key of everything drawn for it
    start: int
    samples: int


@dataclass(frozen=True, slots=True)
class Microbatches:
    """One rank's share of an optimiser step."""

    step: int
    epoch: int
    parts: tuple[tuple[Crop, ...], ...]  # one per microbatch, none empty
    planned_frames: int  # valid frames of the global batch, over all ranks: what a loss that is a mean divides by


def count_microbatches(batch_seconds: float, microbatch_seconds: float, world: int = 1) -> int:
    """Into how many microbatches a global batch is cut: none is longer than `microbatch_seconds`, all processes get as many."""
    return math.lcm(max(1, math.ceil(batch_seconds / microbatch_seconds - 1e-9)), world)


class LengthBucketSampler:
    """Batches without padding in which every recording is visited once per epoch.

    Recordings are ordered by length, with those of like length shuffled, and cut into batches in that order; longer
    ones are cropped (at random places) to at most `crop_seconds` and to the shortest in their batch, so that nothing is
    padded. Lengths count as like when they differ by at most `max_trim`, which is what the cropping to the shortest may
    lose. Then the batches are shuffled. The last batch, of the shortest recordings, is filled up with the next longer
    ones, so these are visited twice. A small corpus is repeated (each visit with its own epoch number) until it fills
    several batches.

    With `fixed_crops` above 0, a recording has so many crops and no others, one after the other in successive epochs, so
    that what a teacher makes of them can be kept: their lengths are rounded down to a grid of steps of `max_trim`, and
    longer recordings have theirs evenly spaced (one that is hardly longer has a single one). They depend on the
    recording's length, `crop_seconds` and `max_trim` alone, not on seed, corpus or batch. A batch at the border of two
    lengths is then padded.

    Args:
        seconds: The durations (N,).
        batch_seconds: Bounds the audio of a global batch.
        crop_seconds: The longest crop.
        min_seconds: Shorter recordings are left out.
        max_trim: The share of a crop that cutting to the shortest of a batch may lose.
        seed: Of the order and the places of crops.
        rank: Whose share `batch` gives.
        world: How many processes share a batch.
        microbatch_seconds: Bounds one microbatch of one process, rounded up to a whole recording where the crops do not divide
            it evenly.
        fixed_crops: How many crops a recording has; 0: any.
        frame_multiple: Crops that are not fixed are cut to a multiple of so many frames, so that there are few lengths; 1: not.

    Raises:
        UserError: Nothing is left, or there is not one crop for every microbatch.
    """

    def __init__(
        self,
        seconds: Sequence[float] | np.ndarray,
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
    ):
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} does not exist")
        self.seed, self.rank, self.world = seed, rank, world
        self.microbatches = count_microbatches(batch_seconds, microbatch_seconds, world)  # of all processes, in a step
        self.accumulate = self.microbatches // world
        self.whole = np.floor(np.asarray(seconds, dtype=np.float64) * SAMPLE_RATE + 1e-3).astype(np.int64)  # samples
        shortest = max(RECEPTIVE_FIELD, round(min_seconds * SAMPLE_RATE))
        usable = np.flatnonzero(self.whole >= shortest)
        if not len(usable):
            least = f"{shortest / SAMPLE_RATE:g} s"
            raise UserError(f"None of the {len(self.whole)} speech recordings lasts {least}: lower data.min_seconds.")
        self.crop_samples = np.minimum(self.whole, round(crop_seconds * SAMPLE_RATE))
        if self.crop_samples[usable].max() < shortest:
            raise UserError(f"data.crop_seconds ({crop_seconds:g}) is below data.min_seconds: raise the first.")
        self.fixed_crops, self.frame_multiple = fixed_crops, frame_multiple
        if fixed_crops:
            self.crop_samples = _on_grid(self.crop_samples, round(crop_seconds * SAMPLE_RATE), max_trim)
        self.capacity = round(batch_seconds * SAMPLE_RATE)  # samples of a global batch
        longest = int(self.crop_samples[usable].max())
        check_room(batch_seconds, longest / SAMPLE_RATE, self.microbatches, world)
        self._stretch = 1 / (1 - max_trim) if not fixed_crops else 1.0
        # How many different crops a recording has: as many as it takes to cover it, at most `fixed_crops`.
        rest = self.whole * (1 - max_trim) - STRIDE  # less than a frame more is no second crop
        self._crops = np.clip(np.ceil(rest / self.crop_samples.clip(1)), 1, max(1, fixed_crops))
        audio = int(self.crop_samples[usable].sum())
        self.passes = max(1, -(-_BATCHES_PER_PLAN * self.capacity // audio))  # over the corpus, in one plan
        self._usable = usable
        self._order_cells()
        self._cut()
        self._cached: tuple[int, np.ndarray, np.ndarray] | None = None

    @property
    def steps_per_plan(self) -> int:
        """Steps after which every usable recording has been visited `passes` times."""
        return len(self._first)

    @property
    def steps_per_epoch(self) -> float:
        """Optimiser steps in which every recording is visited once; a mean, where several epochs share batches."""
        return self.steps_per_plan / self.passes

    def batch(self, step: int, rank: int | None = None) -> Microbatches:
        """The microbatches of `rank` (by default the sampler's own) in an optimiser step, counted from 0."""
        rank = self.rank if rank is None else rank
        plan, place = divmod(step, self.steps_per_plan)
        entries, limit = self._entries(plan, place)
        index, visit = self._usable[entries % len(self._usable)], plan * self.passes + entries // len(self._usable)
        samples = self.crop_samples[index]
        if not self.fixed_crops:
            samples = np.full(len(index), self._whole_multiple(min(limit, int(samples.min()))))
        visits = zip(index.tolist(), visit.tolist(), samples.tolist(), strict=True)
        crops = [Crop(i, epoch, self.start(i, epoch, kept), kept) for i, epoch, kept in visits]
        frames = int(((samples - RECEPTIVE_FIELD) // STRIDE + 1).sum())
        shares = range(rank * self.accumulate, (rank + 1) * self.accumulate)
        parts = tuple(tuple(crops[share :: self.microbatches]) for share in shares)
        return Microbatches(step, plan * self.passes, parts, frames)

    def _whole_multiple(self, samples: int) -> int:
        """The length of the largest multiple of `frame_multiple` frames within `samples`; where there is none, `samples`."""
        frames = (samples - RECEPTIVE_FIELD) // STRIDE + 1
        kept = frames - frames % self.frame_multiple
        return samples if self.frame_multiple == 1 or kept == 0 else (kept - 1) * STRIDE + RECEPTIVE_FIELD

    def start(self, index: int, epoch: int, kept: int) -> int:
        """Where the crop of `kept` samples of a recording begins in its visit `epoch`."""
        room = int(self.whole[index]) - kept
        if not self.fixed_crops:
            return int(fraction(self.seed, "crop", epoch, index) * (room + 1))
        count = int(self._crops[index])
        return room * (epoch % count) // (count - 1) if count > 1 else room // 2

    def _order_cells(self) -> None:
        """Cells of like length, longest first: within one, cropping to the padding limit cuts nothing."""
        mine = self.crop_samples[self._usable]
        lengths = np.sort(mine)[::-1]
        longest, shortest = np.empty_like(lengths), np.empty_like(lengths)
        tops: list[int] = []
        begin = 0
        while begin < len(lengths):
            tops.append(int(lengths[begin]))
            end = int(np.searchsorted(-lengths, -lengths[begin] / self._stretch, side="right"))
            longest[begin:end], shortest[begin:end] = lengths[begin], lengths[end - 1]
            begin = end
        self._cell = np.searchsorted(-np.array(tops), -mine, side="right") - 1  # of each usable recording
        # Of the cell at each position in the order of a plan's entries.
        self._longest: list[int] = np.repeat(longest, self.passes).tolist()
        self._shortest: list[int] = np.repeat(shortest, self.passes).tolist()

    def _cut(self) -> None:
        """Where each batch begins in the order by length, how many recordings it takes, and its longest crop."""
        self._first: list[int] = []
        self._count: list[int] = []
        self._limit: list[int] = []
        total, begin = len(self._longest), 0
        while begin < total:
            limit = self._longest[begin]
            count = self.capacity // limit
            while begin + count <= total and not self.fixed_crops:
                # Shorter recordings at the batch's end crop the others, which makes room for more.
                limit = min(limit, int(self._shortest[begin + count - 1] * self._stretch))
                if self.capacity // limit <= count:
                    break
                count = self.capacity // limit
            if begin + count > total and self.fixed_crops:
                count = total - begin  # reaching back to longer ones takes more room for each
                while count < total and (count + 1) * self._longest[total - count - 1] <= self.capacity:
                    count += 1
                self._first.append(total - count)
            elif begin + count > total:  # the last batch reaches back to the next longer recordings
                limit = min(self._longest[begin], int(self._shortest[-1] * self._stretch))
                count = min(total, self.capacity // limit)
                self._first.append(total - count)
            else:
                self._first.append(begin)
            self._count.append(count)
            self._limit.append(limit)
            begin = self._first[-1] + count

    def _entries(self, plan: int, place: int) -> tuple[np.ndarray, int]:
        """The entries (recording + pass * number of recordings) of the batch at `place`, and its longest crop."""
        if self._cached is None or self._cached[0] != plan:
            random = generator(self.seed, "batches", plan)
            keys = np.tile(self._cell, self.passes) + random.random(len(self._usable) * self.passes)
            self._cached = (plan, np.argsort(keys), random.permutation(self.steps_per_plan))
        _, order, batches = self._cached
        batch = batches[place]
        first = self._first[batch]
        return order[first : first + self._count[batch]], self._limit[batch]


def check_room(batch_seconds: float, crop_seconds: float, microbatches: int, world: int) -> None:
    """Raise `UserError` where a global batch does not hold a crop for each of its microbatches."""
    if round(batch_seconds * SAMPLE_RATE) < microbatches * round(crop_seconds * SAMPLE_RATE):
        shared = f", for each of {microbatches} microbatches of {world} processes" if microbatches > 1 else ""
        raise UserError(
            f"data.batch_seconds ({batch_seconds:g}) holds less than one crop of {crop_seconds:g} s{shared}: raise it, "
            f"{'raise data.microbatch_seconds, ' * (microbatches > world)}{'start fewer processes, ' * (world > 1)}or lower "
            "data.crop_seconds."
        )


def _on_grid(samples: np.ndarray, longest: int, trim: float) -> np.ndarray:
    """Lengths rounded down to `longest` * (1 - trim)^k, and then to whole frames."""
    if trim > 0:
        steps = np.ceil(np.log(samples.clip(1) / longest) / np.log1p(-trim) - 1e-9)
        samples = np.minimum(samples, np.floor(longest * (1 - trim) ** steps).astype(np.int64))
    frames = (samples - RECEPTIVE_FIELD) // STRIDE
    return np.where(frames >= 0, frames * STRIDE + RECEPTIVE_FIELD, samples)
