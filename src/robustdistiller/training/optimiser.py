"""AdamW with correct no-decay groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import torch
from torch import nn

from ..config import TrainingConfig


def build_optimiser(module: nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over the parameters that need a gradient; biases, norms and gains (one axis) are not decayed.

    On a GPU it is fused: one kernel, which also leaves out a step whose `found_inf` is set.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    fused = True if device.type == "cuda" else None
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up to the peak over `warmup` of the steps, then linear to 0; `step` counts from 0."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    return config.learning_rate * max(0.0, (config.steps - step) / max(1, config.steps - warm))
