"""Scenes rendered: speech through its room, noise added at its SNR, effects; utterances in batches, on any device.

Method: RobustDistiller (arXiv 2302.09437) section 3.1. Speech is reverberated first, with the direct path at lag 0 and its
level kept; then noise is added at an SNR that is measured against the reverberant speech over valid samples. Levels leave out
the mean and infrasound; the speech itself keeps them, recorded noise loses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..audio.rir import RIR
from .cache import ByteCache
from .convolution import (
    Array,
    audible_power,
    choose,
    convolve,
    device_of,
    fft_size,
    gain,
    mean_power,
    on_device,
    rfft,
    scaled,
    zeros_like,
)
from .effects import apply_effects
from .noise import SILENCE
from .scene import Scene

Response = Callable[[str], RIR]
"""Gives a room response by its id."""


def render(
    clean: Tensor,
    lengths: Tensor,
    noise: Tensor | None,
    scenes: Sequence[Scene],
    response: Response,
    spectra: ByteCache[Array],
) -> Tensor:
    """Contaminated speech (B, T), as `Environment.render` describes it.

    Args:
        clean: Waveforms (B, T).
        lengths: Valid samples, (B,).
        noise: (B, T) before it is scaled; None where no scene has noise.
        scenes: One for each utterance.
        response: Gives a room response by its id.
        spectra: Keeps the spectra of room responses for a processor.
    """
    speech, sounds = _values(clean), _values(clean if noise is None else noise.to(clean.device))
    out = zeros_like(speech, tuple(clean.shape))
    for rows, length in _alike(lengths, together=isinstance(speech, Tensor)):
        some = [scenes[i] for i in rows]
        part = _taken(speech, rows, length)
        if length and any(scene.room is not None or scene.snr_db is not None or scene.effects for scene in some):
            part = _contaminated(some, part, _taken(sounds, rows, length), response, spectra)
        if len(rows) == len(out):
            out[:, :length] = part
        else:
            for i, row in zip(rows, part, strict=True):
                out[i, :length] = row
    return torch.from_numpy(out) if isinstance(out, np.ndarray) else out


def _contaminated(
    scenes: Sequence[Scene], clean: Array, noise: Array, response: Response, spectra: ByteCache[Array]
) -> Array:
    """Utterances of one length, (R, T)."""
    plan = [(scene.room, scene.noise_room, scene.snr_db, 10 ** (-(scene.snr_db or 0.0) / 20)) for scene in scenes]
    rooms, noise_rooms, snrs, _ = zip(*plan, strict=True)
    table = np.array([[x is not None for x in row[:3]] + [row[3]] for row in plan])  # (R, 4)
    told = on_device(table, device_of(clean))
    in_room, noise_in_room, noisy = told[:, 0] > 0, told[:, 1] > 0, told[:, 2] > 0
    rows = clean
    if any(rooms):
        wet = _through_rooms(clean, rooms, response, spectra)
        if isinstance(clean, Tensor):  # both at once: a launch costs more than what it does
            level, found = audible_power(torch.stack([clean, wet]))
        else:
            level, found = audible_power(clean), audible_power(wet)
        rows = choose(in_room & (found > 0), scaled(wet, gain(level, found)), clean)
    else:
        level = audible_power(clean)
    if any(snr is not None for snr in snrs):
        if any(noise_rooms):
            wet = _through_rooms(noise, noise_rooms, response, spectra, circular=True)
            noise = choose(noise_in_room, wet, noise)
        # The speech has the level of the clean speech again, whatever the room.
        rows = choose(noisy, rows + scaled(noise, gain(level, mean_power(noise)) * told[:, 3]), rows)
    if any(scene.effects for scene in scenes):
        rows = rows * 1  # the clean speech itself is not changed
        for i, scene in enumerate(scenes):
            rows[i] = apply_effects(scene.effects, rows[i])
    return choose(level > SILENCE, rows, clean)


def _through_rooms(
    rows: Array, rooms: Sequence[str | None], response: Response, spectra: ByteCache[Array], circular: bool = False
) -> Array:
    """(R, T), each through its room; nothing is left of those that have none."""
    found = [None if room is None else response(room) for room in rooms]
    delay = max(rir.direct for rir in found if rir is not None)
    length = max(len(rir.samples) + delay - rir.direct for rir in found if rir is not None)
    if isinstance(rows, Tensor):
        length = fft_size(length)  # few lengths, so that a GPU prepares for few

    def transformed(size: int) -> Array:
        aligned = np.zeros((len(found), length), np.float32)
        for row, rir in zip(aligned, found, strict=True):
            if rir is not None:
                row[delay - rir.direct :][: len(rir.samples)] = rir.samples
        return rfft(on_device(aligned, device_of(rows)), size)

    def kept(size: int) -> Array:  # for a processor, which takes a row at a time
        return spectra.get((*rooms, size), lambda: transformed(size))

    return convolve(rows, length, delay, transformed if isinstance(rows, Tensor) else kept, circular)


def _values(waves: Tensor) -> Array:
    """(B, T) in single precision, as a NumPy view on a processor."""
    waves = waves.detach().float()
    return waves.numpy() if waves.device.type == "cpu" else waves


def _alike(lengths: Tensor, together: bool) -> Iterator[tuple[list[int], int]]:
    """Numbers of rows of one length, and the length; each by itself where they are not computed `together`."""
    numbers: dict[int, list[int]] = {}
    for i, length in enumerate(lengths.tolist()):
        numbers.setdefault(length, []).append(i)
    for length, rows in numbers.items():
        yield from [(rows, length)] if together else [([row], length) for row in rows]


def _taken(waves: Array, rows: Sequence[int], length: int) -> Array:
    """Some rows of (B, T), of their `length`: a view where that is possible."""
    if len(rows) in (1, len(waves)):
        return waves[rows[0] : rows[-1] + 1, :length]
    return torch.stack([waves[i, :length] for i in rows])
