"""What a model costs before anything is run on a device: parameters and multiply-accumulate operations; and its licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..audio.io import SAMPLE_RATE

SECONDS = 5  # attention grows with the square of the length: figures are per second of audio of this length


def macs_per_second(model: nn.Module) -> float:
    """Multiply-accumulate operations for a second of audio out of five, of the encoder alone (convolutions and products).

    model: something with ``.states(wave (1, T))``, such as a student or a teacher
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    encoder: Any = getattr(model, "encoder", model)
    weight = next(encoder.parameters())
    # The counter sees products, not the fused attention of the processor.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, SECONDS * SAMPLE_RATE, dtype=weight.dtype, device=weight.device))
    return counter.get_total_flops() / 2 / SECONDS


def licence_of(folder: Path) -> str:
    """The licence in the front matter of a model card, or "unknown"."""
    from huggingface_hub import ModelCard

    try:
        return str(ModelCard.load(folder / "README.md").data.license or "unknown")
    except Exception:  # no card, or one that is no text or no YAML
        return "unknown"
