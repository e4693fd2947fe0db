"""What a benchmark depends on besides its models, tasks and conditions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .task_heads import HeadConfig


@dataclass(frozen=True)
class Settings:
    """Seeds, heads and bootstrap of a benchmark."""

    train_on: Literal["clean", "contaminated"] = "clean"  # what the heads learn from: clean speech in the paper
    seeds: int = 3  # heads per model and task
    seed: int = 0
    # Of the bootstrap; corrected for a hundred comparisons, fewer could not show a p below 0.05.
    replicates: int = 10_000
    similarity: int = 48  # utterances per task behind the label-free score; 0: leave it out
    save_audio: int = 1  # utterances per task that are written out under every condition
    batch_seconds: float = 16.0  # of longer ones, what a layer hands to the next leaves a processor's cache
    heads: HeadConfig = field(default_factory=HeadConfig)
