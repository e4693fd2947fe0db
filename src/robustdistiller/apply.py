"""A student at work on files: hidden states per file, and enhanced speech; recordings of any length, in windows.

Transformers cost the square of the length, so that a recording is processed in windows of 30 s with a second of context on
either side, of which only the inner part is kept. Within a window the result is that of `Student.states` and
`Student.enhance`; between two windows it may differ slightly from one pass over the whole recording.
Shapes: T samples, F frames, S states, D hidden.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .audio.io import SAMPLE_RATE, SUFFIXES, find_audio, read_audio, write_audio
from .errors import AudioError, UserError
from .files import StrPath, replacing
from .models.frames import GRID
from .models.student import Student
from .outputs import claim_file, is_audio_of, is_npz_of, software
from .progress import Progress
from .runtime.windows import windows

logger = logging.getLogger(__name__)

LONGEST_SECONDS = 4 * 3600


@dataclass(frozen=True)
class Applied:
    """One file: where it came from and went to, or why it was skipped."""

    source: Path
    target: Path | None
    seconds: float = 0.0
    reason: str | None = None


def extract_features(
    student: Student,
    inputs: Iterable[StrPath],
    out: StrPath,
    predictions: bool = False,
    dtype: str = "float32",
    progress: Progress | None = None,
    overwrite: bool = False,
) -> list[Applied]:
    """Write the hidden states of every file as ``out/….npz`` with `states` (S, F, D), `times` (F,) in seconds, `names` (S,).

    Args:
        student: The student; its device is used.
        inputs: Files and folders, or one of either.
        out: The folder to write; for a single file also a name that ends in ``.npz``.
        predictions: Add the predicted teacher layers to the states.
        dtype: ``float32`` or ``float16``.
        progress: Called with (files done, all files).
        overwrite: Replace what an earlier call wrote.

    Returns:
        A row for every file; those that cannot be read are skipped and have a reason.

    Raises:
        UserError: There is no audio at all, two files would have one output, or something would be replaced.
    """
    names = [*student.states_names, *(f"teacher layer {k}" for k in student.layers if predictions)]

    def work(wave: Tensor, target: Path) -> None:
        states = features_of(student, wave, predictions).numpy().astype(dtype)
        with replacing(target) as temporary, temporary.open("wb") as stream:
            np.savez(stream, states=states, times=GRID.times(states.shape[1]).numpy(), names=np.array(names))

    targets = _targets(inputs, Path(out), (".npz",))
    _claim(targets, "features", is_npz_of("states", "times", "names"), overwrite)
    return _each(targets, work, progress)


def enhance_files(
    student: Student, inputs: Iterable[StrPath], out: StrPath, progress: Progress | None = None, overwrite: bool = False
) -> list[Applied]:
    """Write the enhanced speech of every file.

    Args:
        student: A student with an enhancement head; its device is used.
        inputs: Files and folders, or one of either.
        out: The folder to write; for a single file also a name that ends in ``.wav``, ``.flac`` or ``.ogg``.
        progress: Called with (files done, all files).
        overwrite: Replace what an earlier call wrote.

    Returns:
        As `extract_features`.

    Raises:
        UserError: As `extract_features`, and when the student has no enhancement head.
    """
    student.enhancement_head()

    def work(wave: Tensor, target: Path) -> None:
        write_audio(target, enhanced(student, wave).numpy(), comment=software("enhance"))

    targets = _targets(inputs, Path(out), (".wav", ".flac", ".ogg"))
    _claim(targets, "enhance", is_audio_of("enhance"), overwrite)
    return _each(targets, work, progress)


def features_of(student: Student, wave: Tensor, predictions: bool = False) -> Tensor:
    """The states of one recording (T,) of any length, (S, F, D)."""
    device = next(student.parameters()).device
    _check_length(wave)
    parts = []
    for window in windows(wave, GRID.stride, GRID.field, SAMPLE_RATE):
        states, _ = student.states(window.wave[None].to(device), predictions=predictions)
        parts.append(states[0, :, window.first - window.begin : window.last - window.begin].cpu())
    return torch.cat(parts, 1)


def enhanced(student: Student, wave: Tensor) -> Tensor:
    """The enhanced speech of one recording (T,) of any length, (T,)."""
    device = next(student.parameters()).device
    _check_length(wave)
    parts = []
    for window in windows(wave, rate=SAMPLE_RATE):
        found = student.enhance(window.wave[None].to(device))[0]
        parts.append(found[window.first - window.begin : window.last - window.begin].cpu())
    return torch.cat(parts)


def _check_length(wave: Tensor) -> None:
    if len(wave) < GRID.field:
        raise AudioError("The audio is shorter than one frame (25 ms): give more of it.", "too-short")


def _each(targets: dict[Path, Path], work: Callable[[Tensor, Path], None], progress: Progress | None) -> list[Applied]:
    done, lost = [], Counter[str]()
    first: dict[str, str] = {}
    for number, (target, source) in enumerate(targets.items(), 1):
        try:
            wave = read_audio(source, seconds=LONGEST_SECONDS)
            if len(wave) >= LONGEST_SECONDS * SAMPLE_RATE:
                raise AudioError(f"{source} is longer than {LONGEST_SECONDS // 3600} h: cut it first.", "too-long")
            work(torch.from_numpy(wave), target)
            done.append(Applied(source, target, len(wave) / SAMPLE_RATE))
        except AudioError as error:
            lost[error.reason] += 1
            first.setdefault(error.reason, str(error) if str(source) in str(error) else f"{source}: {error}")
            done.append(Applied(source, None, 0.0, error.reason))
        if progress is not None:
            progress(number, len(targets))
    for reason, count in lost.items():  # a line for every reason, not for every file
        more = f"{count} files are left out ({reason}), the first: " if count > 1 else ""
        logger.warning("%s%s", more, first[reason])
    if not any(item.target for item in done):
        raise UserError(f"None of {len(targets)} recordings can be used (first: {done[0].source}, {done[0].reason}).")
    return done


def _targets(inputs: Iterable[StrPath] | StrPath, out: Path, suffixes: tuple[str, ...]) -> dict[Path, Path]:
    """The files to write and what each is made from; folders keep their inner layout, and no two files share an output."""
    entries = [Path(i) for i in ([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)]
    named = out.suffix.lower() in {*suffixes, ".npz", *SUFFIXES} and not os.path.isdir(out)
    if named and not (len(entries) == 1 and os.path.isfile(entries[0])):
        raise UserError(f"{out} is the name of a file: give a folder for the outputs of several files.")
    if named and out.suffix.lower() not in suffixes:
        raise UserError(f"Cannot write {out}: choose a name that ends in {' or '.join(suffixes)}.")
    found: list[tuple[Path, Path]] = []  # each file and where its output goes, by its own name
    for entry in entries:
        if os.path.isdir(entry):
            found += [(file, out / file.relative_to(entry)) for file in find_audio(entry)]
        elif os.path.isfile(entry):
            found.append((entry, out / entry.name))
        else:
            raise UserError(f"There is no file or folder {entry}: check the path.")
    if not found:
        raise UserError(f"There is no audio in {', '.join(map(str, entries))}: give .wav, .flac, … files or folders.")
    if named:
        return {out: found[0][0]}
    stems = Counter(place.with_suffix("") for _, place in found)
    targets: dict[Path, Path] = {}
    for source, place in found:
        # a.wav and a.flac would meet in one file
        name = place.name if stems[place.with_suffix("")] > 1 else place.stem
        target = place.with_name(name + suffixes[0])
        other = targets.setdefault(target, source)
        if other != source:
            raise UserError(
                f"{other} and {source} would both be written to {target}: give the folder that holds both, which keeps its "
                "layout, or call this once for each."
            )
    return targets


def _claim(targets: dict[Path, Path], verb: str, ours: Callable[[Path], bool], overwrite: bool) -> None:
    """Pass the gate for every output, before any work."""
    sources = {os.path.realpath(source) for source in targets.values()}
    for target, source in targets.items():
        taken = os.path.realpath(target) in sources
        claim_file(target, verb, ours, [target] if taken else [source], overwrite)
