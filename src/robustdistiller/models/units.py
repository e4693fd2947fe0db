"""Masked prediction of clusters of the teacher's states, as HuBERT does (arXiv 2106.07447): the head, and k-means.

Shape legend: B utterances, F frames, D hidden, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class UnitPrediction:
    """What `UnitHead` makes of a batch.

    logits: (B, F, K); hidden: (B, F) the frames that the Transformer did not see, None for none; centroids: (K, D_teacher)
    """

    logits: Tensor
    hidden: Tensor | None
    centroids: Tensor


class UnitHead(nn.Module):
    """Linear(D → K) on the student's last state, the vector that is seen in place of hidden frames, and the clusters.

    Args:
        hidden: D, the student's width.
        centroids: (K, D_teacher), of `k_means`. They go into checkpoints.
    """

    SHARE, SPAN = 0.08, 10  # of the frames, where a span begins; frames in a span
    centroids: Tensor

    def __init__(self, hidden: int, centroids: Tensor):
        super().__init__()
        self.output = nn.Linear(hidden, len(centroids))
        self.vector = nn.Parameter(torch.zeros(hidden))
        self.register_buffer("centroids", centroids)

    def draw(self, rows: int, frames: int) -> tuple[Tensor, Tensor]:
        """Frames to hide, (B, F), in spans, about half of all; and the vector (D,) that is seen in their place."""
        starts = (torch.rand(rows, 1, frames, device=self.vector.device) < self.SHARE).float()
        return functional.max_pool1d(functional.pad(starts, (self.SPAN - 1, 0)), self.SPAN, 1)[:, 0] > 0, self.vector

    def forward(self, states: Tensor, hidden: tuple[Tensor, Tensor] | None) -> UnitPrediction:
        """The student's last states (B, F, D), made with what was `draw`n, → logits."""
        return UnitPrediction(self.output(states), None if hidden is None else hidden[0], self.centroids)


def nearest(states: Tensor, centroids: Tensor) -> Tensor:
    """The number of the centroid (K, D) next to each state (..., D)."""
    return (centroids.square().sum(1) - 2 * states @ centroids.T).argmin(-1)


def k_means(states: Tensor, clusters: int, seed: int, rounds: int = 20) -> Tensor:
    """Centroids (K, D) of states (N, D) by Lloyd's algorithm, from some of them; an empty cluster stays where it is."""
    order = torch.randperm(len(states), generator=torch.Generator().manual_seed(seed))
    centroids = states[order[torch.arange(clusters) % len(states)]].clone()
    for _ in range(rounds):
        found = nearest(states, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, found, states)
        counts = torch.bincount(found, minlength=clusters)[:, None]
        centroids = torch.where(counts > 0, sums / counts.clamp_min(1), centroids)
    return centroids
