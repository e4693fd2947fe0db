"""A student at work on files: hidden states per file, and enhanced speech; recordings of any length, in windows.

Transformers cost the square of the length, so that a recording is heard in windows of 30 s with a second of context on
either side, of which only the inner part is kept. Within a window the result is that of `Student.states` and
`Student.enhance`; between two windows it may differ slightly from one pass over the whole recording.
Shapes: T samples, F frames, S states, D hidden.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .audio.io import SAMPLE_RATE, find_audio, read_audio, write_audio
from .errors import AudioError, UserError
from .files import replacing
from .models.frames import GRID
from .models.student import Student

logger = logging.getLogger(__name__)

WINDOW_SECONDS, CONTEXT_SECONDS = 30, 1
LONGEST_SECONDS = 4 * 3600
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Applied:
    """One file: where it came from and went to, or why it was skipped."""

    source: Path
    target: Path | None
    seconds: float = 0.0
    reason: str | None = None


def extract_features(
    student: Student,
    inputs: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    predictions: bool = False,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> list[Applied]:
    """Write the hidden states of every file as ``out/….npz`` with `states` (S, F, D), `times` (F,) in seconds, `names` (S,).

    inputs: files and folders; predictions: add the predicted teacher layers. Files that cannot be read are skipped and
    returned with a reason. Raises `UserError` when there is no audio at all.
    """
    names = [*student.states_names, *(f"teacher layer {k}" for k in student.layers if predictions)]

    def work(wave: Tensor, target: Path) -> None:
        states = features_of(student, wave, predictions).numpy().astype(dtype)
        with replacing(target) as temporary, temporary.open("wb") as stream:
            np.savez(stream, states=states, times=GRID.times(states.shape[1]).numpy(), names=np.array(names))

    return _each(inputs, Path(out), ".npz", work, progress)


def enhance_files(
    student: Student,
    inputs: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    progress: Progress | None = None,
) -> list[Applied]:
    """Write the enhanced speech of every file of `inputs` (files and folders) under the folder `out`, or to the file `out`.

    Raises `UserError` when the student has no enhancement head or there is no audio at all.
    """
    if student.enhancer is None:
        raise UserError(
            f"The student {student.name} has no enhancement head: distil one with objectives.enhancement.enabled=true."
        )

    def work(wave: Tensor, target: Path) -> None:
        write_audio(target, enhanced(student, wave).numpy())

    return _each(inputs, Path(out), ".wav", work, progress)


def features_of(student: Student, wave: Tensor, predictions: bool = False) -> Tensor:
    """The states of one recording (T,) of any length, (S, F, D)."""
    device = next(student.parameters()).device
    total = int(GRID.count(torch.tensor(len(wave))))
    if total < 1:
        raise AudioError("The audio is shorter than one frame (25 ms).", "too-short")
    parts = []
    for begin, end, inner, outer in windows(total, WINDOW_SECONDS * 50, CONTEXT_SECONDS * 50):
        # The last window ends with the audio: the remainder of a frame still counts for the statistics over time.
        stop = (end - 1) * GRID.stride + GRID.field if end < total else len(wave)
        piece = wave[begin * GRID.stride : stop]
        states, _ = student.states(piece[None].to(device), predictions=predictions)
        parts.append(states[0, :, inner:outer].cpu())
    return torch.cat(parts, 1)


def enhanced(student: Student, wave: Tensor) -> Tensor:
    """The enhanced speech of one recording (T,) of any length, (T,)."""
    device = next(student.parameters()).device
    if len(wave) < GRID.field:
        raise AudioError("The audio is shorter than one frame (25 ms).", "too-short")
    parts = []
    for begin, end, inner, outer in windows(len(wave), WINDOW_SECONDS * SAMPLE_RATE, CONTEXT_SECONDS * SAMPLE_RATE):
        parts.append(student.enhance(wave[None, begin:end].to(device))[0, inner:outer].cpu())
    return torch.cat(parts)


def windows(total: int, size: int, context: int) -> Iterator[tuple[int, int, int, int]]:
    """Cover `total` units: (begin, end) of each window, and the (inner, outer) part of it that is kept.

    The last window is at least `context` long before its kept part, so that no window is a sliver.
    """
    if total <= size + 2 * context:
        yield 0, total, 0, total
        return
    position = 0
    while position < total:
        stop = position + size if total - position - size > 2 * context else total
        begin, end = max(0, position - context), min(total, stop + context)
        yield begin, end, position - begin, stop - begin
        position = stop


def _each(
    inputs: Iterable[str | os.PathLike[str]],
    out: Path,
    suffix: str,
    work: Callable[[Tensor, Path], None],
    progress: Progress | None,
) -> list[Applied]:
    pairs = list(_targets([Path(i) for i in inputs], out, suffix))
    done = []
    for number, (source, target) in enumerate(pairs, 1):
        try:
            wave = read_audio(source, seconds=LONGEST_SECONDS)
            if len(wave) >= LONGEST_SECONDS * SAMPLE_RATE:
                raise AudioError(
                    f"{source} is longer than {LONGEST_SECONDS // 3600} h: cut it into parts first.", "too-long"
                )
            work(torch.from_numpy(wave), target)
            done.append(Applied(source, target, len(wave) / SAMPLE_RATE))
        except AudioError as error:
            logger.warning("%s", error)
            done.append(Applied(source, None, 0.0, error.reason))
        if progress is not None:
            progress(number, len(pairs))
    if not any(item.target for item in done):
        raise UserError(
            f"None of the {len(pairs)} recordings can be used (the first: {done[0].source}, {done[0].reason})."
        )
    return done


def _targets(inputs: list[Path], out: Path, suffix: str) -> Iterator[tuple[Path, Path]]:
    """Pairs of files to read and to write; folders keep their inner layout."""
    single = len(inputs) == 1 and os.path.isfile(inputs[0]) and out.suffix.lower() in (".wav", ".flac", ".ogg", ".npz")
    found = False
    taken: dict[Path, Path] = {}
    for entry in inputs:
        if os.path.isdir(entry):
            pairs = [(file, out / file.relative_to(entry).with_suffix(suffix)) for file in find_audio(entry)]
        elif os.path.isfile(entry):
            pairs = [(entry, out if single else out / f"{entry.stem}{suffix}")]
        else:
            raise UserError(f"There is no file or folder {entry}: check the path.")
        for source, target in pairs:
            if target in taken:  # a.wav and a.flac would meet in one file
                target = target.with_name(f"{source.name}{suffix}")
            if target.resolve() == source.resolve():
                raise UserError(f"The output would replace its input {source}: choose another --out.")
            taken[target] = source
            found = True
            yield source, target
    if not found:
        raise UserError(
            f"There is no audio in {', '.join(map(str, inputs))}: give files or folders with .wav, .flac, .ogg, …."
        )
