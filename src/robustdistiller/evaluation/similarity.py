"""Robustness without labels: how much of a model's features survives a contamination, layer by layer.

Cosine: the mean over valid frames of the cosine between the clean and the contaminated frame, after the model's mean clean
frame is subtracted (features often share a large constant part, which would make any two frames look alike).
CKA: linear centred kernel alignment (Kornblith et al. 2019) of the two sets of frames; 1 when one is a rotation and scaling of
the other, so it also credits changes that a linear head could undo.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Similarity:
    """Running sums over pairs of frames of one model and condition; memory is S·D², whatever is heard."""

    count: int = 0
    sums: Tensor | None = None  # (2, S, D)
    products: Tensor | None = None  # (3, S, D, D): clean·clean, noisy·noisy, clean·noisy

    def add(self, clean: Tensor, noisy: Tensor, frames: Tensor) -> None:
        """Add a batch of states (B, S, F, D) of both versions with the same valid `frames` (B,)."""
        valid = torch.arange(clean.shape[2], device=clean.device) < frames[:, None]  # (B, F)
        x, y = (states.transpose(1, 2)[valid].double().transpose(0, 1) for states in (clean, noisy))  # (S, ΣF, D)
        sums = torch.stack([x.sum(1), y.sum(1)])
        products = torch.stack([x.mT @ x, y.mT @ y, x.mT @ y])
        self.sums = sums if self.sums is None else self.sums + sums
        self.products = products if self.products is None else self.products + products
        self.count += x.shape[1]

    def cka(self) -> list[float]:
        """Linear CKA per state."""
        assert self.sums is not None and self.products is not None
        mean = self.sums / self.count
        xx, yy, xy = self.products / self.count - torch.stack(
            [torch.einsum("sd,se->sde", mean[i], mean[j]) for i, j in ((0, 0), (1, 1), (0, 1))]
        )
        norm = xx.flatten(1).norm(dim=1) * yy.flatten(1).norm(dim=1)
        return (xy.flatten(1).square().sum(1) / norm.clamp_min(1e-30)).tolist()  # type: ignore[no-any-return]


@dataclass
class MeanCosine:
    """Running mean of frame cosines per state, around the clean mean (S, D)."""

    centre: Tensor
    total: Tensor | None = None
    count: int = 0

    def add(self, clean: Tensor, noisy: Tensor, frames: Tensor) -> None:
        """Add a batch of states (B, S, F, D) of both versions with the same valid `frames` (B,)."""
        centre = self.centre.to(clean.device)[:, None]  # (S, 1, D)
        cosine = torch.cosine_similarity(clean - centre, noisy - centre, dim=-1, eps=1e-8)  # (B, S, F)
        valid = torch.arange(clean.shape[2], device=clean.device) < frames[:, None]
        total = (cosine.double() * valid[:, None]).sum((0, 2)).cpu()
        self.total = total if self.total is None else self.total + total
        self.count += int(valid.sum())

    def value(self) -> list[float]:
        """The mean cosine per state."""
        assert self.total is not None
        return (self.total / self.count).tolist()  # type: ignore[no-any-return]
