"""Robustness without labels: how much of a model's features survives a contamination, layer by layer.

Cosine: the mean over valid frames of the cosine between the clean and the contaminated frame, after the model's mean clean
frame is subtracted (features often share a large constant part, which would make any two frames look alike).
CKA: linear centred kernel alignment (Kornblith et al. 2019) of the two sets of frames; 1 when one is a rotation and scaling of
the other, so it also credits changes that a linear head could undo.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .conditions import Condition
from .features import FeatureModel, Plan
from .rendering import ConditionRenderer
from .task_file import Example, Task

FORMAT = 1  # raise it when the same inputs would give other figures


@dataclass
class Similarity:
    """Running sums over pairs of frames of one model and condition; memory is S·D², however long the audio."""

    count: int = 0
    sums: Tensor = torch.zeros(())  # (2, S, D)
    products: Tensor = torch.zeros(())  # (3, S, D, D): clean·clean, noisy·noisy, clean·noisy

    def add(self, clean: Tensor, noisy: Tensor, frames: Tensor) -> None:
        """Add a batch of states (B, S, F, D) of both versions with the same valid `frames` (B,)."""
        valid = torch.arange(clean.shape[2], device=clean.device) < frames[:, None]  # (B, F)
        x, y = (states.transpose(1, 2)[valid].double().transpose(0, 1) for states in (clean, noisy))  # (S, ΣF, D)
        self.sums = self.sums + torch.stack([x.sum(1), y.sum(1)])
        self.products = self.products + torch.stack([x.mT @ x, y.mT @ y, x.mT @ y])
        self.count += x.shape[1]

    def cka(self) -> list[float]:
        """Linear CKA per state."""
        mean = self.sums / self.count
        pairs = ((0, 0), (1, 1), (0, 1))
        outer = torch.stack([torch.einsum("sd,se->sde", mean[i], mean[j]) for i, j in pairs])
        xx, yy, xy = self.products / self.count - outer
        norm = xx.flatten(1).norm(dim=1) * yy.flatten(1).norm(dim=1)
        return (xy.flatten(1).square().sum(1) / norm.clamp_min(1e-30)).tolist()  # type: ignore[no-any-return]


@dataclass
class MeanCosine:
    """Running mean of frame cosines per state, around the clean mean (S, D)."""

    centre: Tensor
    total: Tensor = torch.zeros(())
    count: int = 0

    def add(self, clean: Tensor, noisy: Tensor, frames: Tensor) -> None:
        """Add a batch of states (B, S, F, D) of both versions with the same valid `frames` (B,)."""
        centre = self.centre.to(clean.device)[:, None]  # (S, 1, D)
        cosine = torch.cosine_similarity(clean - centre, noisy - centre, dim=-1, eps=1e-8)  # (B, S, F)
        valid = torch.arange(clean.shape[2], device=clean.device) < frames[:, None]
        self.total = self.total + (cosine.double() * valid[:, None]).sum((0, 2)).cpu()
        self.count += int(valid.sum())

    def value(self) -> list[float]:
        """The mean cosine per state."""
        return (self.total / self.count).tolist()  # type: ignore[no-any-return]


def similarities(
    model: FeatureModel,
    stage: ConditionRenderer,
    task: Task,
    examples: Sequence[Example],
    plan: Plan,
    conditions: Sequence[Condition],
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """Both measures per state of `model`, on `examples` of the test part of `task`, a row per contaminated condition."""
    batches = [[examples[i] for i in batch] for shard in plan.shards for batch in shard]
    total, count, rows = torch.zeros((), device=device), 0, []
    # The clean states serve every condition; together they may be too many for the memory.
    with tempfile.TemporaryDirectory() as folder:
        for number, batch in enumerate(batches):
            wave, lengths = stage.load(batch, task)
            states, frames = model.states(wave.to(device), lengths.to(device))
            valid = torch.arange(states.shape[2], device=states.device) < frames[:, None]
            total = total + (states.double() * valid[:, None, :, None]).sum((0, 2))
            count += int(valid.sum())
            save_file({"clean": states.cpu().contiguous(), "frames": frames.cpu()}, f"{folder}/{number}.safetensors")
        centre = (total / count).float()
        for condition in conditions:
            cosine, alignment = MeanCosine(centre), Similarity()
            for number, batch in enumerate(batches):
                wave, lengths = stage.load(batch, task)
                noisy = stage.contaminate(wave, lengths, condition, task, "test", batch)
                states, _ = model.states(noisy.to(device), lengths.to(device))
                kept = load_file(f"{folder}/{number}.safetensors", device=str(device))
                cosine.add(kept["clean"], states, kept["frames"])
                alignment.add(kept["clean"], states, kept["frames"])
            values = {"cosine": cosine.value(), "cka": alignment.cka()}
            rows.append({"condition": condition.name, **{k: [round(v, 5) for v in x] for k, x in values.items()}})
    return rows
