"""The whole loss of a batch: L = w_l1 · L1 + w_cos · mean(-log σ(cos)) + w_corr · correlation + λ · enhancement."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ObjectivesConfig
from ..models.student import StudentOutput
from ..models.teacher import TeacherOutput
from .distillation import correlation, l1, log_sigmoid_cosine
from .enhancement import DEFAULT_WEIGHTS, enhancement_loss


@dataclass
class Loss:
    """total (B,): the weighted sum per utterance; terms: each term per utterance, unweighted, (B,) or (B, L)."""

    total: Tensor
    terms: dict[str, Tensor]


def enhancement_weight(config: ObjectivesConfig) -> float:
    """λ of the recipe, or the default of its loss; 0 when there is no enhancement."""
    enhancement = config.enhancement
    if not enhancement.enabled:
        return 0.0
    return DEFAULT_WEIGHTS[enhancement.loss] if enhancement.weight is None else enhancement.weight


def total_loss(config: ObjectivesConfig, output: StudentOutput, target: TeacherOutput, clean: Tensor) -> Loss:
    """The loss of a student's `output` on contaminated speech against the teacher's `target` on the `clean` (B, T).

    The student's frames may be one or two more or fewer than the teacher's: the frames that both have count.
    """
    assert output.predictions is not None
    frames = min(output.predictions.shape[2], target.hidden.shape[2])
    lengths = torch.minimum(output.encoded.lengths, target.lengths).clamp_max(frames)
    predictions, hidden = output.predictions[:, :, :frames].float(), target.hidden[:, :, :frames].float()
    terms = {
        "l1": l1(predictions, hidden, lengths),
        "cosine": log_sigmoid_cosine(predictions, hidden, lengths),
    }
    total = config.l1 * terms["l1"].mean(1) + config.cosine * terms["cosine"].mean(1)
    if config.correlation:
        terms["correlation"] = correlation(predictions, hidden, lengths)
        total = total + config.correlation * terms["correlation"].mean(1)
    if output.enhancement is not None:
        terms["enhancement"] = enhancement_loss(config.enhancement.loss, output.enhancement, clean)
        total = total + enhancement_weight(config) * terms["enhancement"]
    return Loss(total, terms)
