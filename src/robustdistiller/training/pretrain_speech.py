"""The speech of a pretraining: clean crops, each a pure function of its key.

A crop is filled with clips of one pool, one after another with short pauses, each resampled by a random factor. That moves
pitch, formants and rate together and so makes speakers that nobody recorded. No noise, no room, no effect is ever added.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import soxr
import torch
from pydantic import Field
from torch import Tensor

from ..audio.io import SAMPLE_RATE
from ..audio.manifest import read_manifest
from ..config import Number, Positive, Seconds
from ..errors import UserError
from ..progress import Progress
from ..randomness import generator
from ..schema import Section

log = logging.getLogger(__name__)

PAUSE = 0.25  # s, the longest silence between two clips of a crop
Factor = Annotated[Number, Field(ge=0.25, le=4)]


class PoolConfig(Section):
    """Manifests that are drawn from alike; `exclude` names labels to leave out (recordings that are not speech)."""

    manifests: tuple[str, ...]
    weight: Positive
    exclude: tuple[str, ...] = ()


class CropConfig(Section):
    """How crops are cut; the defaults are those of the shipped mini teacher."""

    seconds: tuple[Seconds, ...] = (1.0, 2.0, 3.0, 5.0)  # one length per step, equal for all of its rows
    speeds: tuple[Factor, Factor] = (0.87, 1.15)
    gain_db: Annotated[Number, Field(ge=0, le=60)] = 6.0  # between clips of a crop, whose level is then normalised


@dataclass(frozen=True)
class Pool:
    """Recordings held in memory as int16, and the probability of drawing from them."""

    name: str
    waves: tuple[np.ndarray, ...]
    weight: float

    @property
    def hours(self) -> float:
        return sum(wave.size for wave in self.waves) / SAMPLE_RATE / 3600


def load_pools(
    configs: Mapping[str, PoolConfig],
    roots: Sequence[str | Path],
    split: str = "train",
    progress: Progress | None = None,
) -> list[Pool]:
    """Read one split of every pool; a manifest is looked for under each of `roots`, without a split it is all training.

    Pools without recordings of that split are left out. Raises `UserError` for a manifest that is nowhere.
    """
    files = {name: [_find(manifest, roots) for manifest in config.manifests] for name, config in configs.items()}
    pools, read, total = [], 0, sum(map(len, files.values()))
    for name, config in configs.items():
        waves = []
        for file in files[name]:
            for recording in read_manifest(file):
                if (recording.split or "train") == split and recording.label not in config.exclude:
                    waves.append((recording.load().clip(-1, 1) * 32767).astype(np.int16))
            read += 1
            if progress:
                progress(read, total)
        if waves:
            pools.append(Pool(name, tuple(waves), config.weight))
            log.info("%s (%s): %d recordings, %.2f h", name, split, len(waves), pools[-1].hours)
    if not pools:
        raise UserError(f"No recording of the split '{split}' is left: check the manifests and what they exclude.")
    return pools


def _find(manifest: str, roots: Sequence[str | Path]) -> Path:
    for root in roots:
        if (Path(root) / manifest).is_file():
            return Path(root) / manifest
    raise UserError(f"There is no {manifest} under {', '.join(map(str, roots))}: name its folder with --data.")


def cut(pools: Sequence[Pool], samples: int, config: CropConfig, *key: int | str) -> np.ndarray:
    """One clean crop (samples,) float32 of zero mean and unit variance; depends on `key` alone."""
    rng = generator(*key)
    weights = np.array([pool.weight for pool in pools])
    waves = pools[rng.choice(len(pools), p=weights / weights.sum())].waves
    crop = np.zeros(samples, np.float32)
    position = 0
    while position < samples:
        wave = waves[rng.integers(len(waves))]
        speed = math.exp(rng.uniform(math.log(config.speeds[0]), math.log(config.speeds[1])))
        need = math.ceil((samples - position) * speed) + 16
        start = int(rng.integers(0, wave.size - need + 1)) if wave.size > need else 0
        part = wave[start : start + need].astype(np.float32) / 32768
        clip = soxr.resample(part, SAMPLE_RATE * speed, SAMPLE_RATE, quality="MQ")[: samples - position]
        crop[position : position + clip.size] = clip * 10 ** (rng.uniform(-config.gain_db, config.gain_db) / 20)
        position += clip.size + int(rng.uniform(0, PAUSE) * SAMPLE_RATE)
    crop -= crop.mean()
    return crop / (crop.std() + 1e-7)


def draw(pools: Sequence[Pool], config: CropConfig, batch_seconds: float, seed: int, step: int | str) -> Tensor:
    """The batch of a step: (B, T) equally long crops, about `batch_seconds` in total; a pure function of (seed, step)."""
    seconds = config.seconds[int(generator(seed, "length", step).integers(len(config.seconds)))]
    rows = max(1, round(batch_seconds / seconds))
    samples = round(seconds * SAMPLE_RATE)
    return torch.from_numpy(np.stack([cut(pools, samples, config, seed, step, row) for row in range(rows)]))


def draw_mask(rows: int, frames: int, share: float, span: int, seed: int, step: int) -> Tensor | None:
    """Spans of frames to hide, (B, F) boolean, about `share` of all; None when nothing is to be hidden."""
    if not share:
        return None
    starts = generator(seed, "mask", step).random((rows, frames)) < share / span
    return torch.from_numpy(np.stack([np.convolve(row, np.ones(span))[:frames] > 0 for row in starts]))
