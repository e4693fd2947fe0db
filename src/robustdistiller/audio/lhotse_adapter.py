"""An optional door for lhotse: cut sets read as recordings, Shar folders and processed cuts unpacked to files.

Training reads any part of any recording at any time, so it needs files. Cuts that are plain parts of audio files are
read in place; everything else (Shar archives, mixes, speed-perturbed or in-memory cuts) is written out once as FLAC.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..channels import downmix
from ..errors import UserError, explained, optional
from ..files import StrPath, parse_json, text_lines
from ..progress import Progress
from .io import write_audio
from .manifest import Recording, recording_from_row, write_manifest

log = logging.getLogger(__name__)

_PER_FOLDER = 1000  # files


def is_cuts(path: StrPath) -> bool:
    """Whether the first line of a .jsonl or .jsonl.gz file is a lhotse cut."""
    try:
        row = parse_json(next(text_lines(path), "null"))
    except (OSError, ValueError, EOFError, zlib.error):
        return False  # the reader of manifests says what is wrong with it
    return isinstance(row, dict) and str(row.get("type", "")).endswith("Cut")


def read_cuts(path: StrPath) -> list[Recording]:
    """The cuts of a .jsonl or .jsonl.gz file as recordings, without copying audio.

    Speaker and text come from the supervisions, the split and other fields from `custom`. Raises `UserError` for a cut
    that is not a part of one audio file.
    """
    recordings = [_in_place(cut, Path(path)) for cut in _cuts(path)]
    repeated = len(recordings) - len({recording.id for recording in recordings})
    if repeated:
        raise UserError(f"{path} repeats {repeated} cut ids: make them unique with lhotse's modify_ids.")
    return recordings


def shar_to_manifest(shar: StrPath, out: StrPath, progress: Progress | None = None) -> Path:
    """Stream a Shar folder out as FLAC files and a manifest in the folder `out`; returns the manifest's path."""
    lhotse = optional("lhotse", "lhotse", "Reading a Shar folder")
    if not list(Path(shar).glob("cuts.*.jsonl*")):
        raise UserError(f"{shar} is no Shar folder: it holds no cuts.000000.jsonl.gz.")
    return cuts_to_manifest(lhotse.CutSet.from_shar(in_dir=os.fspath(shar)), out, progress)


def cuts_to_manifest(cuts: Iterable[Any] | StrPath, out: StrPath, progress: Progress | None = None) -> Path:
    """Write every cut (of any kind; a file of cuts or an iterable) as mono FLAC at its own rate, and a manifest.

    The manifest appears when all is written. `progress` is called with the number of cuts done and 0, as a stream does
    not know its length. Cuts whose audio cannot be read are left out, with a warning.
    """
    manifest = Path(out) / "manifest.jsonl"
    stream = _cuts(cuts) if isinstance(cuts, (str, os.PathLike)) else cuts
    write_manifest(manifest, _exported(stream, Path(out), progress))
    return manifest


def _exported(cuts: Iterable[Any], out: Path, progress: Progress | None) -> Iterator[Recording]:
    written = 0
    for number, cut in enumerate(cuts):
        try:
            wave = cut.load_audio(mono_downmix=True) if type(cut).__name__ == "MixedCut" else cut.load_audio()
        except Exception as error:  # whatever the cut's storage and its transforms may raise
            log.warning("the cut %s is left out: its audio cannot be read (%s)", cut.id, error)
            continue
        if wave is None:
            log.warning("the cut %s is left out: it has no audio", cut.id)
            continue
        path = out / "audio" / f"{number // _PER_FOLDER:05d}" / f"{number:08d}.flac"
        wave = downmix(wave.T)  # (channels, T)
        write_audio(path, wave, cut.sampling_rate)
        yield _described(cut, str(path), len(wave) / cut.sampling_rate, 0.0)
        written += 1
        if progress:
            progress(number + 1, 0)
    if not written:
        raise UserError(f"No cut could be written to {out}: check that their audio is where they say.")


def _in_place(cut: Any, file: Path) -> Recording:
    recording: Any = getattr(cut, "recording", None)  # a mix has none
    channels = getattr(cut, "channel", 0)
    channel = channels if isinstance(channels, int) else None
    sources = [] if recording is None else recording.sources
    source = next((s for s in sources if channel is None or channel in s.channels), None)
    if source is None or source.type != "file" or _changed(recording) or (channel is None and len(sources) > 1):
        raise UserError(
            f"The cut {cut.id} of {file} is not a part of one audio file: write the cuts out with "
            "robustdistiller.audio.lhotse_adapter.cuts_to_manifest and give the manifest."
        )
    path = source.source
    if not os.path.isabs(path) and not os.path.exists(path):
        path = str(file.parent / path)  # lhotse counts from the working folder; a set that moved, from its own
    described = _described(cut, os.path.abspath(path), cut.duration, cut.start)
    if channel is not None and len(source.channels) > 1:
        described.extra["use_channel"] = source.channels.index(channel)
    return described


def _changed(recording: Any) -> bool:
    """Whether its transforms do more than resample, which reading does anyway."""
    names = [t.get("name") if isinstance(t, dict) else type(t).__name__ for t in recording.transforms or ()]
    return any(name != "Resample" for name in names)


def _described(cut: Any, path: str, seconds: float, start: float) -> Recording:
    speakers = sorted({s.speaker for s in cut.supervisions if s.speaker})
    texts = [s.text for s in sorted(cut.supervisions, key=lambda s: s.start) if s.text]
    custom = {name: value for name, value in (getattr(cut, "custom", None) or {}).items() if _plain(value)}
    row = {**custom, "id": cut.id, "path": path, "duration": seconds, "start": start}
    if speakers:
        row["speaker"] = "+".join(speakers)
    if texts:
        row["text"] = " ".join(texts)
    try:
        return recording_from_row(row, path)
    except ValueError as error:
        raise UserError(f"The cut {cut.id} cannot be used: {error}.") from error


def _plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _cuts(path: StrPath) -> Iterator[Any]:
    optional("lhotse", "lhotse", "Reading lhotse cuts")
    from lhotse.serialization import deserialize_item

    number = 0
    try:
        for number, line in enumerate(text_lines(path), 1):
            with explained(f"Line {number} of {path} is not a lhotse cut", "write the set again."):
                cut = deserialize_item(parse_json(line))  # which builds whatever the line says
            yield cut
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): copy it or write the set again.") from error
    if not number:
        raise UserError(f"{path} holds no cuts: write the set again.")
