"""Held-out speech under fixed contaminations: the losses of every layer, and what the enhancement head gains.

Each validation utterance is evaluated twice, clean and contaminated; both are a function of the seed alone, so that every
validation of every recipe on the same data has exactly the same input. Targets are computed once and kept in memory in half
precision.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..acoustics.environment import Environment
from ..audio.batching import Crop
from ..audio.io import SAMPLE_RATE
from ..audio.manifest import Recording
from ..config import ObjectivesConfig, Recipe
from ..distributed import Distributed
from ..errors import AudioError, UserError
from ..models.precision import autocast
from ..models.student import Student
from ..models.teacher import Teacher, TeacherOutput
from ..objectives.quality import available_quality, si_sdr, speech_quality
from ..objectives.total import total_loss
from .dataset import Batch, collate, load_crop

logger = logging.getLogger(__name__)

BATCH_SECONDS = 60.0
PERCEPTUAL_UTTERANCES = 16
"""STOI and PESQ take longer than the model: they are measured on the first so many utterances."""


@dataclass
class Kept:
    """A validation batch with its contaminated speech (B, T) and its targets in half precision."""

    batch: Batch
    noisy: Tensor
    targets: TeacherOutput


class Validator:
    """Fixed validation data for this process of `context`; call it with a student for the metrics over all processes."""

    def __init__(
        self,
        recipe: Recipe,
        recordings: Sequence[Recording],
        environment: Environment,
        teacher: Teacher,
        device: torch.device,
        context: Distributed,
    ):
        self.objectives: ObjectivesConfig = recipe.objectives
        self.device, self.context, self.teacher, self.environment = device, context, teacher, environment
        self.layers = teacher.layers
        mine = sorted(recordings, key=lambda r: (-r.seconds, r.id))[context.rank :: context.world]
        self.kept: list[Kept] = []
        self._speech = list[tuple[Recording, Any]]()
        for index, recording in enumerate(mine):
            seconds = min(recording.seconds, recipe.data.crop_seconds)
            crop = Crop(index, 0, 0, int(seconds * SAMPLE_RATE + 1e-3))
            try:
                self._speech.append((recording, load_crop(recording, crop)))
            except AudioError as error:
                logger.warning("validation leaves out %s: %s", recording.id, error)
        if not self._speech and context.world == 1:
            raise UserError("No validation recording can be read: check the files of the valid split.")

    def prepare(self) -> None:
        """Make the batches, over which rooms and teacher take a while; the first validation does where nobody has."""
        start, items, environment = 0, list[Any](), self.environment
        for recording, wave in self._speech:
            scene = environment.draw(recording.id, len(wave) / SAMPLE_RATE, epoch=0, speaker=recording.speaker)
            items.append((wave, scene, environment.fetch(scene, len(wave)), environment.responses(scene), []))
        while start < len(items):
            size = len(items[start][0])  # the longest comes first, so it bounds the batch
            count = max(1, int(BATCH_SECONDS * SAMPLE_RATE / size))
            batch = collate(items[start : start + count]).to(self.device)
            noisy = batch.contaminated(self.environment)
            targets = self.teacher(batch.clean, batch.lengths)
            self.kept.append(Kept(batch, noisy, TeacherOutput(targets.hidden.half(), targets.lengths)))
            start += count
        self._speech = []

    @torch.no_grad()
    def __call__(self, student: Student, precision: str) -> dict[str, float]:
        """Metrics by name: loss/…, l1/…/layer, cosine/…/layer, si_sdr, stoi, pesq; "clean" or "contaminated" speech."""
        self.prepare()
        was_training = student.training
        student.eval()
        sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))  # of values times weights, and of weights

        def add(name: str, values: Tensor | np.ndarray, weights: Tensor | np.ndarray) -> None:
            values, weights = (torch.as_tensor(x, dtype=torch.float64, device="cpu") for x in (values, weights))
            sums[name] += float((values * weights).sum()), float(weights.sum())

        judged = 0
        for kept in self.kept:
            batch, targets = kept.batch, TeacherOutput(kept.targets.hidden.float(), kept.targets.lengths)
            frames = targets.lengths
            for condition, wave in (("clean", batch.clean), ("contaminated", kept.noisy)):
                with autocast(self.device, precision):
                    output = student(wave, batch.lengths)
                loss = total_loss(self.objectives, output, targets, batch.clean)
                distillation = loss.terms["l1"].mean(1) + loss.terms["cosine"].mean(1)
                add(f"distillation/{condition}", distillation, frames)
                add(f"loss/{condition}", loss.total, frames)
                for name in ("l1", "cosine"):
                    for number, layer in enumerate(self.layers):
                        add(f"{name}/{condition}/layer{layer}", loss.terms[name][:, number], frames)
                if output.enhancement is None:
                    continue
                add(f"enhancement/{condition}", loss.terms["enhancement"], frames)
                if condition == "contaminated":
                    enhanced = output.enhancement.waveform(wave.shape[1])
                    # Clean speech has no finite SI-SDR against itself: only utterances that were changed count.
                    changed = torch.tensor([s.kind != "clean" for s in batch.scenes], dtype=torch.float64)
                    add("si_sdr/in", si_sdr(wave, batch.clean, batch.lengths), changed)
                    add("si_sdr/out", si_sdr(enhanced, batch.clean, batch.lengths), changed)
                    left = max(0, PERCEPTUAL_UTTERANCES - judged)
                    for name, values in perceptual(batch.clean, wave, enhanced, batch.lengths, left).items():
                        add(name, np.array(values), np.ones(len(values)))
                    judged += len(batch.scenes)
        student.train(was_training)
        totals: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
        for part in self.context.gather(dict(sums)):  # of every rank, which may have no utterance for some names
            for name, found in part.items():
                totals[name] += found
        return {name: float(value / count) for name, (value, count) in totals.items() if count > 0}


def perceptual(clean: Tensor, noisy: Tensor, enhanced: Tensor, lengths: Tensor, most: int) -> dict[str, list[float]]:
    """STOI and PESQ before and after enhancement on the first `most` utterances, as far as their packages are installed."""
    wanted = [name for name in available_quality() if name in ("stoi", "pesq")]
    values: dict[str, list[float]] = defaultdict(list)
    for row in range(min(most, clean.shape[0])):
        signals = (wave[row, : int(lengths[row])] for wave in (clean, noisy, enhanced))
        reference, before, after = (signal.double().cpu().numpy() for signal in signals)
        for side, degraded in (("in", before), ("out", after)):
            for name, value in speech_quality(degraded, reference, wanted).items():
                if np.isfinite(value):
                    values[f"{name}/{side}"].append(value)
    return values
