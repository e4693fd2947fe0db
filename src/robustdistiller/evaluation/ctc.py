"""The head for phone recognition and speech recognition: frame-wise states → units, trained with CTC, decoded greedily.

Phones get SUPERB's linear head; characters get two bidirectional LSTM layers, as SUPERB's recogniser has (of 256 units here,
not 1024). Frames are read from disk in batches of similar length, so memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..randomness import generator
from .features import StoredFeatures
from .metrics import unit_errors
from .task_heads import WIDTH, Batches, HeadConfig, Mix, Tick, Trained, Weights, builder, train_heads

BLANK = 0
BATCH_FRAMES = 2500  # padding included: 50 s


class CTCHead(nn.Module):
    """States (B, F, S, D) → log-probabilities (B, F, 1 + units); index 0 is the blank."""

    def __init__(self, states: int, size: int, units: int, recurrent: bool):
        super().__init__()
        self.mix = Mix(states, size)
        self.project = nn.Linear(size, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, 2, batch_first=True, bidirectional=True, dropout=0.2) if recurrent else None
        self.answer = nn.Linear(2 * WIDTH if recurrent else WIDTH, 1 + units)

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        hidden = self.project(self.mix(states))  # (B, F, 256)
        if self.lstm is not None:
            packed = pack_padded_sequence(hidden, frames.cpu(), batch_first=True, enforce_sorted=False)
            hidden = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]
        return functional.log_softmax(self.answer(hidden), -1)

    def loss(self, states: Tensor, frames: Tensor, targets: Sequence[NDArray[np.int64]]) -> Tensor:
        """CTC loss per unit, averaged over utterances; what does not fit into its frames counts as 0."""
        # CTC's gradient is only deterministic on a processor, where this part costs next to nothing.
        log_probs = self(states, frames).transpose(0, 1).cpu()
        joined = torch.from_numpy(np.concatenate(targets))
        sizes = torch.tensor([len(t) for t in targets])
        return functional.ctc_loss(log_probs, joined, frames.cpu(), sizes, blank=BLANK, zero_infinity=True)


def fit_ctc_heads(
    train: StoredFeatures,
    targets: Sequence[NDArray[np.int64]],
    valid: StoredFeatures,
    valid_targets: Sequence[NDArray[np.int64]],
    units: int,
    recurrent: bool,
    config: HeadConfig,
    seed: int,
    device: torch.device | str = "cpu",
    tick: Tick = None,
) -> list[Trained]:
    """CTC heads on all frames; targets are indices from 1 to `units` per utterance. Chosen by the unit error rate."""
    build = builder(CTCHead, train, units, recurrent, device=device)

    def losses(head: nn.Module, weights: Weights, batch: NDArray[np.int64]) -> Tensor:
        states, frames = frames_of(train, batch[0])
        return head.loss(states.to(device), frames, [targets[i] for i in batch[0]])  # type: ignore[operator]

    def validate(head: nn.Module) -> tuple[float, float]:
        wrong = total = 0
        for found, wanted in zip(decode(head, valid, device), valid_targets, strict=True):
            errors, count = unit_errors([str(u) for u in wanted], [str(u) for u in found])
            wrong, total = wrong + errors, total + count
        return -wrong / max(total, 1), 0.0

    # Its steps are long enough, and of other lengths for every seed.
    return train_heads(build, losses, _batches(train.frames), validate, config, seed, tick, stacked=False)


@torch.no_grad()
def decode(head: nn.Module, features: StoredFeatures, device: torch.device | str = "cpu") -> list[list[int]]:
    """The best path of every utterance, repeats merged and blanks removed: unit indices from 1."""
    found: list[list[int]] = [[]] * len(features)
    for batch in _packed(np.argsort(-features.frames, kind="stable"), features.frames):
        states, frames = frames_of(features, batch)
        best = head(states.to(device), frames).argmax(-1).cpu()
        for index, path, count in zip(batch.tolist(), best, frames.tolist(), strict=True):
            merged = torch.unique_consecutive(path[:count]).tolist()
            found[index] = [unit for unit in merged if unit != BLANK]
    return found


def frames_of(features: StoredFeatures, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """The frames of some utterances, padded with zeros: (B, F, S, D) float32 and valid frames (B,)."""
    starts = features.starts
    counts = features.frames[indices]
    padded = np.zeros((len(indices), int(counts.max()), *features.rows.shape[1:]), dtype=np.float32)
    for row, (index, count) in enumerate(zip(indices, counts, strict=True)):
        padded[row, :count] = features.rows[starts[index] : starts[index] + count]
    return torch.from_numpy(padded), torch.from_numpy(counts)


def _packed(order: NDArray[np.int64], frames: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut an order, longest first, into batches of at most BATCH_FRAMES frames, padding included."""
    batches: list[NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        size = max(1, BATCH_FRAMES // max(1, int(frames[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


def _batches(frames: NDArray[np.int64]) -> Batches:
    """Batches of similar length, at most 16 utterances; which lengths meet and in which order changes with the epoch."""

    def batches(seed: int, epoch: int) -> list[NDArray[np.int64]]:
        rng = generator(seed, "ctc epoch", epoch)
        order = np.argsort(-frames * rng.uniform(0.9, 1.1, len(frames)), kind="stable")
        # Jitter may put a longer one behind the first: the largest of a batch decides how many fit.
        cut = [piece for packed in _packed(order, frames) for piece in np.split(packed, range(16, len(packed), 16))]
        return [cut[i] for i in rng.permutation(len(cut))]

    return batches
