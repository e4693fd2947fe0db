"""From recordings to batches: crops read and noise fetched in loader workers, scenes rendered later on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..acoustics.scene import Environment, Scene
from ..audio.batching import Crop, LengthBucketSampler
from ..audio.io import SAMPLE_RATE
from ..audio.manifest import Recording
from ..errors import AudioError, UserError
from ..models.frames import GRID
from ..randomness import integer


@dataclass
class Batch:
    """A microbatch. clean, noise: (B, T); lengths: (B,) valid samples; replaced: what could not be read, as rows."""

    clean: Tensor
    lengths: Tensor
    noise: Tensor | None
    scenes: list[Scene]
    replaced: list[dict[str, Any]] = field(default_factory=list)

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on `device`."""
        noise = None if self.noise is None else self.noise.to(device, non_blocking=True)
        clean, lengths = (x.to(device, non_blocking=True) for x in (self.clean, self.lengths))
        return Batch(clean, lengths, noise, self.scenes, self.replaced)

    def pin_memory(self) -> Batch:
        """For the loader: page-locked copies, which a GPU reads without waiting."""
        noise = None if self.noise is None else self.noise.pin_memory()
        return Batch(self.clean.pin_memory(), self.lengths.pin_memory(), noise, self.scenes, self.replaced)


class CropDataset(Dataset[Any]):
    """(step, crop) → the clean samples of the crop, its scene and its raw noise; a pure function of its key."""

    def __init__(self, recordings: Sequence[Recording], environment: Environment):
        self.recordings = recordings
        self.environment = environment

    def __getitem__(self, key: tuple[int, Crop]) -> tuple[np.ndarray, Scene, np.ndarray | None, list[dict[str, Any]]]:
        step, crop = key
        index, replaced = crop.index, []
        while True:
            recording = self.recordings[index]
            try:
                wave = load_crop(recording, crop)
                break
            except AudioError as error:
                replaced.append({"id": recording.id, "path": recording.path, "reason": error.reason, "step": step})
                if len(replaced) >= 20:
                    raise UserError(
                        f"Twenty recordings in a row cannot be read any more (the last: {recording.path}): is the disk with "
                        "the speech still there? Then go on with --resume."
                    ) from error
                index = integer("replacement", recording.id, crop.epoch, len(replaced)) % len(self.recordings)
        scene = self.environment.draw(recording.id, len(wave) / SAMPLE_RATE, crop.epoch, step, recording.speaker)
        return wave, scene, self.environment.fetch(scene, len(wave)), replaced


def load_crop(recording: Recording, crop: Crop) -> np.ndarray:
    """Read a crop of a recording: (T,) float32, at most crop.samples long."""
    wave = recording.load(crop.start / SAMPLE_RATE, crop.samples / SAMPLE_RATE)
    if len(wave) < GRID.field:
        raise AudioError(f"{recording.path} is shorter than one frame.", "too-short")
    return wave


def collate(items: list[tuple[np.ndarray, Scene, np.ndarray | None, list[dict[str, Any]]]]) -> Batch:
    """Pad crops of nearly equal length with zeros."""
    waves, scenes, noises, replaced = zip(*items, strict=True)
    size = max(len(wave) for wave in waves)

    def stack(rows: Sequence[np.ndarray | None]) -> Tensor:
        out = np.zeros((len(rows), size), np.float32)
        for row, values in zip(out, rows, strict=True):
            if values is not None:
                row[: len(values)] = values
        return torch.from_numpy(out)

    noise = stack(noises) if any(n is not None for n in noises) else None
    lengths = torch.tensor([len(wave) for wave in waves])
    return Batch(stack(waves), lengths, noise, list(scenes), [row for rows in replaced for row in rows])


class StepSampler(Sampler[list[tuple[int, Crop]]]):
    """The microbatches of one rank from `start` to `stop`, in order; no state beyond the step."""

    def __init__(self, sampler: LengthBucketSampler, start: int, stop: int):
        self.sampler, self.start, self.stop = sampler, start, stop

    def __iter__(self) -> Iterator[list[tuple[int, Crop]]]:
        for step in range(self.start, self.stop):
            for microbatch in self.sampler.batch(step).parts:
                yield [(step, crop) for crop in microbatch]


def make_loader(dataset: CropDataset, sampler: StepSampler, workers: int, pin: bool) -> DataLoader[Any]:
    """A loader with a generator of its own: starting its workers must not draw from the global one."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(0),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
