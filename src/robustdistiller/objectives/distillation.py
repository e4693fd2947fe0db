"""Predicting the teacher's hidden layers: L1, log-sigmoid cosine, squared error, correlation metrics, VICReg's terms.

Every term is one value per utterance, a mean over its valid frames, in float32. The trainer weights utterances by their
valid frames, so that the sum is the mean over all valid frames of the global batch however it is split.
Shape legend: B utterances, F frames, L layers, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..models.frames import mask_from_lengths


def frame_mean(values: Tensor, lengths: Tensor) -> Tensor:
    """Mean over valid frames: values (B, L, F), lengths (B,) → (B, L)."""
    valid = mask_from_lengths(lengths, values.shape[-1])[:, None]
    return (values * valid).sum(-1) / lengths.clamp_min(1)[:, None]


def l1(predictions: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Mean absolute difference per layer; (B, L, F, D) twice → (B, L)."""
    return frame_mean((predictions - targets).abs().mean(-1), lengths)


def log_sigmoid_cosine(predictions: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """-log sigmoid(cos(prediction, target)) per layer (arXiv 2110.01900, equation 1); (B, L, F, D) twice → (B, L)."""
    cosine = functional.cosine_similarity(predictions, targets, dim=-1, eps=1e-6)
    return frame_mean(-functional.logsigmoid(cosine), lengths)


def mse(predictions: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Mean squared difference per layer; (B, L, F, D) twice → (B, L)."""
    return frame_mean((predictions - targets).square().mean(-1), lengths)


def correlation(predictions: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Correlation-metric distillation (arXiv 2312.12153) per layer; (B, L, F, D) twice → (B, L).

    Over the valid frames of an utterance, each dimension of student and teacher is standardised. The cross-correlation of
    the two should be the identity (dimension d follows dimension d and no other), and the self-correlation of the student
    should have nothing off its diagonal. Both are means of squares: over D on the diagonal, over D(D-1) off it.
    """
    valid = mask_from_lengths(lengths, predictions.shape[2])[:, None, :, None]
    student = _standardise(predictions, valid, lengths)
    teacher = _standardise(targets, valid, lengths)
    count = lengths.clamp_min(1)[:, None, None, None]
    cross = student.transpose(2, 3) @ teacher / count  # (B, L, D, D)
    own = student.transpose(2, 3) @ student / count
    size = predictions.shape[-1]
    diagonal = (1 - cross.diagonal(dim1=-2, dim2=-1)).square().mean(-1)
    return diagonal + _off_diagonal(cross, size) + _off_diagonal(own, size)


def vicreg(predictions: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Variance and covariance terms of VICReg (arXiv 2105.04906) per layer; (B, L, F, D) twice → (B, L).

    Over the valid frames of an utterance, in units of the teacher's deviation in each dimension: what the deviation of a
    prediction lacks to one, plus the mean square of the covariance of two dimensions. The invariance term is l1, cosine or mse.
    """
    valid = mask_from_lengths(lengths, predictions.shape[2])[:, None, :, None]
    count = lengths.clamp_min(1)[:, None, None, None]

    def centre(x: Tensor) -> tuple[Tensor, Tensor]:
        x = (x - (x * valid).sum(2, keepdim=True) / count) * valid
        return x, x.square().sum(2, keepdim=True) / count + 1e-5

    scale = centre(targets)[1].rsqrt()
    student, variance = centre(predictions)
    student = student * scale
    lacking = functional.relu(1 - variance.sqrt() * scale).mean((2, 3))
    return lacking + _off_diagonal(student.transpose(2, 3) @ student / count, predictions.shape[-1])


def _standardise(x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    count = lengths.clamp_min(1)[:, None, None, None]
    mean = (x * valid).sum(2, keepdim=True) / count
    centred = (x - mean) * valid
    return centred * torch.rsqrt(centred.square().sum(2, keepdim=True) / count + 1e-5)


def _off_diagonal(matrix: Tensor, size: int) -> Tensor:
    squares = matrix.square()
    return (squares.sum((-2, -1)) - squares.diagonal(dim1=-2, dim2=-1).sum(-1)) / max(1, size * (size - 1))


TERMS = {"l1": l1, "cosine": log_sigmoid_cosine, "mse": mse, "correlation": correlation, "vicreg": vicreg}
"""Every term by the name of its weight in the recipe; each takes predictions, targets and lengths."""
