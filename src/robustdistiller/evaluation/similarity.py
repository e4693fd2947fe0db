"""Robustness without labels: how much of a model's features survives a contamination, layer by layer.

Cosine: the mean over valid frames of the cosine between the clean and the contaminated frame, after the model's mean clean
frame is subtracted (features often share a large constant part, which would make any two frames look alike).
CKA: linear centred kernel alignment (Kornblith et al. 2019) of the two sets of frames; 1 when one is a rotation and scaling of
the other, so it also credits changes that a linear head could undo.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .features import FeatureModel, Plan, Render

FORMAT = 1  # raise it when the same inputs would give other figures


class CleanStates:
    """The clean states of a model on some utterances, which serve every condition; on disk, since they may be many."""

    def __init__(self, model: FeatureModel, numbers: Sequence[int], plan: Plan, render: Render, device: torch.device):
        """numbers: what each of the utterances of plan and `render` is called by `Similarity.add`."""
        self._folder = tempfile.TemporaryDirectory()
        self.numbers = frozenset(numbers)
        total = products = torch.zeros((), dtype=torch.float64, device=device)
        count = 0
        for batch in plan.batches:
            wave, lengths = render(batch)
            states, frames = model.states(wave.to(device), lengths.to(device))
            for index, state, size in zip(batch, states, frames.tolist(), strict=True):
                state = state[:, :size].contiguous()
                save_file({"states": state.cpu()}, self._file(numbers[index]))
                exact = state.double()
                total, products, count = total + exact.sum(1), products + exact.mT @ exact, count + size
        mean = total / count
        self.centre = mean.float()[:, None]  # (S, 1, D)
        covariance = products / count - mean[:, :, None] * mean[:, None]
        self.norm = covariance.flatten(1).norm(dim=1)  # (S,)

    def _file(self, number: int) -> str:
        return f"{self._folder.name}/{number}.safetensors"

    def centred(self, number: int) -> Tensor:
        """The states of an utterance without their mean, (S, F, D)."""
        return load_file(self._file(number), device=str(self.centre.device))["states"] - self.centre


class Similarity:
    """Running sums over the frames of one model and condition; memory is S·D², however long the audio."""

    def __init__(self, clean: CleanStates):
        self.clean, self.count = clean, 0
        self.cosines = self.sums = self.products = torch.zeros((), device=clean.centre.device)

    def add(self, numbers: Sequence[int], batch: Sequence[int], states: Tensor, frames: Tensor) -> None:
        """Add contaminated states (B, S, F, D) with valid `frames` (B,), those of utterances whose clean ones are there.

        numbers: of all utterances that `batch`, (B,) indices, is taken from
        """
        sizes = frames.tolist()
        rows = [row for row, k in enumerate(batch) if numbers[k] in self.clean.numbers]
        if not rows:
            return
        x = torch.cat([self.clean.centred(numbers[batch[row]]) for row in rows], 1)  # (S, F, D), all frames in a row
        y = torch.cat([states[row, :, : sizes[row]] for row in rows], 1) - self.clean.centre
        self.cosines = self.cosines + torch.cosine_similarity(x, y, dim=-1, eps=1e-8).double().sum(1)  # (S,)
        self.sums = self.sums + y.double().sum(1)
        self.products = self.products + torch.stack([y.mT @ y, x.mT @ y])  # (2, S, D, D)
        self.count += x.shape[1]

    def values(self) -> dict[str, list[float]]:
        """Mean cosine and CKA per state. The mean of all clean frames is 0 here, so theirs with others is none to subtract."""
        mean, (own, cross) = self.sums / self.count, self.products.double() / self.count
        norm = self.clean.norm * (own - mean[:, :, None] * mean[:, None]).flatten(1).norm(dim=1)
        cka = cross.flatten(1).square().sum(1) / norm.clamp_min(1e-30)
        found = {"cosine": self.cosines / self.count, "cka": cka}
        return {name: [round(value, 5) for value in values.tolist()] for name, values in found.items()}
