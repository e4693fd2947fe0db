"""The proof that an exported graph computes what the student computes, on audio of many lengths, alone and in batches.

Shapes: B utterances, T samples, F frames, S states, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..audio.io import SAMPLE_RATE
from ..models.frames import GRID
from ..randomness import generator
from .quantise import feeds

LENGTHS = (GRID.field, 719, 16_000, 48_123, 80_000)
TOLERANCE, COSINE, AGREEMENT = 1e-4, 0.999, 0.995

Floats = NDArray[np.float32]
Reference = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""Waveforms (B, T) in float64 and lengths (B,) → what the graph's outputs must be, zeros beyond the valid part."""


@dataclass
class Measured:
    """Graph against PyTorch: largest difference; for int8, mean cosine of valid frames by state (or agreement of answers).

    error: largest absolute difference, divided by the RMS of that output where this is above 1
    exceeded: on which signal it is more than may be, in words
    cosine: by state, the mean over valid frames; lowest: their 1 % quantile in the worst state
    agreement: share of equal answers; accuracy: on labelled audio, of fp32 (PyTorch) and int8
    spared: what of an int8 graph stayed in float32
    seconds: of audio that was compared
    """

    error: float = 0.0
    exceeded: str = ""
    cosine: tuple[float, ...] = ()
    lowest: float | None = None
    agreement: float | None = None
    accuracy: dict[str, float] = field(default_factory=dict)
    spared: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, (), {}, "")}


class ProbeBatch(NamedTuple):
    """A batch (B, T) with lengths (B,), and what it is."""

    name: str
    wave: Tensor
    lengths: Tensor


def varied_audio(real: Sequence[Floats] = (), seed: int = 0) -> Iterator[ProbeBatch]:
    """Batches: every length of `LENGTHS` as noise, voice, silence, voice off zero, alone and in batches; a few real clips."""
    for number, length in enumerate(LENGTHS):
        shorter = [length, *(max(GRID.field, n) for n in (int(0.61 * length), length - GRID.stride))]
        kinds = ("noise", "a voice", "a voice with an offset of 0.5") if number % 2 else ("a voice", "noise", "silence")
        for size in (1, 3) if length < LENGTHS[-1] else (1,):
            names = kinds[:size]
            waves = [SIGNALS[name](n, seed + number) for name, n in zip(names, shorter, strict=False)]
            yield ProbeBatch(f"{', '.join(names)} of {length} samples", *_padded(waves))
    if len(real):
        yield ProbeBatch("contaminated speech", *_padded(real[:3]))


def _padded(waves: Sequence[Floats]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(wave) for wave in waves])
    batch = torch.zeros(len(waves), int(lengths.max()))
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    return batch, lengths


def _noise(samples: int, seed: int) -> Floats:
    return (0.1 * generator(seed, "parity").standard_normal(samples)).astype(np.float32)


def voice_like(samples: int, seed: int) -> Floats:
    """Harmonics of a gliding pitch under a syllabic envelope, with a faint noise."""
    time = np.arange(samples) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(130 + 40 * np.sin(2 * np.pi * 0.8 * time + seed)) / SAMPLE_RATE
    sound = sum(np.sin(k * phase) / k for k in range(1, 25)) * (0.5 - 0.5 * np.cos(2 * np.pi * 4 * time))
    return (0.05 * sound + 0.001 * generator(seed, "breath").standard_normal(samples)).astype(np.float32)


SIGNALS: dict[str, Callable[[int, int], Floats]] = {
    "noise": _noise,
    "a voice": voice_like,
    # Ten times the voice: PyTorch's own float32 is off by 1e-3 there, which is why the reference computes in float64.
    "a voice with an offset of 0.5": lambda samples, seed: voice_like(samples, seed) + np.float32(0.5),
    "silence": lambda samples, seed: np.zeros(samples, np.float32),
}


def compare(
    session: Any, reference: Reference, audio: Iterable[ProbeBatch], single: Reference | None = None
) -> Measured:
    """Measure the outputs of `session` against those of PyTorch in float64.

    Args:
        session: An onnxruntime session.
        reference: PyTorch in float64.
        audio: The probes.
        single: PyTorch in float32, asked where a difference passes `TOLERANCE`: twice its own is allowed there, because a
            model that float32 cannot compute better is not the graph's fault.

    Returns:
        The largest difference, and the signal on which it is more than is allowed, if there is one.
    """
    result = Measured()
    for name, wave, lengths in audio:
        found = session.run(None, {"wave": wave.numpy(), "lengths": lengths.numpy()})
        wanted = _outputs(reference, wave, lengths)
        error = _largest_difference(found, wanted)
        if not error <= TOLERANCE:
            own = _largest_difference(_outputs(single, wave, lengths), wanted) if single is not None else 0.0
            if not error <= 2 * own and not error < result.error:
                beside = f" (PyTorch's own float32: {own:.1e})" if single is not None else ""
                result.exceeded = f"{error:.1e} on {name}{beside}"
        result.error = max(result.error, error)
        result.seconds += int(lengths.sum()) / SAMPLE_RATE
    return result


def _outputs(reference: Reference, wave: Tensor, lengths: Tensor) -> list[NDArray[Any]]:
    with torch.no_grad():
        return [value.numpy() for value in reference(wave.double(), lengths)]


def _largest_difference(found: Sequence[NDArray[Any]], wanted: Sequence[NDArray[Any]]) -> float:
    """The largest difference of any output, in units of its RMS where this is above 1; infinite for what is no number."""
    worst = 0.0
    for mine, theirs in zip(found, wanted, strict=True):
        for axis_mine, axis_theirs in zip(_by_state(mine), _by_state(theirs), strict=True):
            scale = max(1.0, float(np.sqrt(np.mean(np.square(axis_theirs, dtype=np.float64)))))
            difference = float(np.abs(axis_mine - axis_theirs).max()) / scale
            worst = max(worst, difference) if np.isfinite(difference) else float("inf")
    return worst


def _by_state(value: NDArray[Any]) -> list[NDArray[Any]]:
    """States (B, S, F, D) have scales of their own; other outputs are taken as a whole."""
    return [value[:, s] for s in range(value.shape[1])] if value.ndim == 4 else [value]


def answers(session: Any, waves: Sequence[Floats]) -> list[list[NDArray[Any]]]:
    """The outputs of a session for each utterance (T,), alone."""
    return [session.run(None, feeds(wave)) for wave in waves]


def fidelity(fp32: Sequence[Sequence[Any]], int8: Sequence[Sequence[Any]], kind: str) -> Measured:
    """`answers` of int8 against those of fp32: cosines of states or of enhanced waveforms; equal answers of heads."""
    if kind in ("classifier", "detector"):
        same = [np.all([a.argmax(-1) == b.argmax(-1) for a, b in zip(*pair, strict=True)], axis=0).ravel()
                for pair in zip(fp32, int8, strict=True)]  # fmt: skip
        return Measured(agreement=float(np.concatenate(same).mean()))
    joined = np.concatenate([_cosine(a[0][0], b[0][0]) for a, b in zip(fp32, int8, strict=True)], 1)
    return Measured(cosine=tuple(joined.mean(1).tolist()), lowest=float(np.quantile(joined, 0.01, axis=1).min()))


def _cosine(wanted: Floats, found: Floats) -> NDArray[Any]:
    """States (S, F, D) → (S, F); a waveform (T,) counts as one vector, (1, 1)."""
    a, b = (x.astype(np.float64) if x.ndim == 3 else x.astype(np.float64)[None, None] for x in (wanted, found))
    scale = np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1))
    return (a * b).sum(-1) / np.maximum(scale, 1e-20)  # type: ignore[no-any-return]
