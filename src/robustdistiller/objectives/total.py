"""The whole loss of a batch: the weighted terms of distillation, means over target layers, and of the enhancement."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ObjectivesConfig
from ..models.frames import beside
from ..models.student import StudentOutput
from ..models.teacher import TeacherOutput
from .distillation import TERMS
from .enhancement import enhancement_loss


@dataclass
class Loss:
    """total (B,): the weighted sum per utterance; terms: each term per utterance, unweighted, (B,) or (B, L)."""

    total: Tensor
    terms: dict[str, Tensor]


def total_loss(config: ObjectivesConfig, output: StudentOutput, target: TeacherOutput, clean: Tensor) -> Loss:
    """The loss of a student's `output` on contaminated speech against the teacher's `target` on the `clean` (B, T).

    The student's frames may be one or two more or fewer than the teacher's: the frames that both have count.
    """
    assert output.predictions is not None
    frames = min(output.predictions.shape[2], target.hidden.shape[2])
    lengths = torch.minimum(output.encoded.lengths, target.lengths).clamp_max(frames)
    lengths = beside(lengths, output.predictions)
    predictions, hidden = output.predictions[:, :, :frames].float(), target.hidden[:, :, :frames].float()
    weights: dict[str, float] = {name: getattr(config, name) for name in TERMS}
    # L1 and cosine are always told, so that runs with other weights can be compared.
    wanted = [name for name in TERMS if weights[name] or name in ("l1", "cosine")]
    terms = {name: TERMS[name](predictions, hidden, lengths) for name in wanted}
    total = torch.stack([weights[name] * term.mean(1) for name, term in terms.items()]).sum(0)
    if output.enhancement is not None:
        terms["enhancement"] = enhancement_loss(output.enhancement, clean)
        total = total + config.enhancement.weight * terms["enhancement"]
    return Loss(total, terms)
