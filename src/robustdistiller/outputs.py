"""The gate that every verb passes before it writes: nothing of the user's is ever replaced.

One rule. What is written is never an input nor a folder around one; what is there already is replaced only if it is an
earlier output of the same verb and the user said ``--overwrite``; devices, pipes and the like are never replaced. Links are
followed: what they lead to is replaced, not the link. A folder that a verb works in (a run, a benchmark) is marked by it, and
a later call goes on there. All of it is checked before any work is done.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import StrPath, check_folder, destination, write_text

MARK = ".robustdistiller"
"""The file in a folder that a verb works in; it holds the name of the verb."""

STUDENT_FILES = (
    "config.json", "model.safetensors", "preprocessor_config.json", "heads.json", "heads.safetensors", "README.md",
    "recipe*.yaml", "provenance.json", ".DS_Store",
)  # fmt: skip
EXPORT_FILES = ("*.onnx", "export.json", ".DS_Store")


def software(verb: str) -> str:
    """The comment in an audio file that says who wrote it."""
    return f"robustdistiller {verb}"


def claim_file(
    path: StrPath, verb: str, ours: Callable[[Path], bool], inputs: Iterable[StrPath] = (), overwrite: bool = False
) -> None:
    """Raise `UserError` unless the file `path` may be written.

    Args:
        path: The file to write.
        verb: Who writes it.
        ours: Whether a file that is there is an earlier output of the verb.
        inputs: Files, folders and sources (``corpus:folder``, ``name=model``) that must stay as they are.
        overwrite: Whether the user allows an earlier output to be replaced.
    """
    place = destination(path)
    _spare(path, inputs)
    if place.is_dir():
        raise UserError(f"{path} is a folder, where a file is to be written: give the name of a file.")
    if not place.exists():
        return
    if not _judged(ours, place):
        raise UserError(f"{path} is there already, and `{verb}` did not write it: choose another name, or move it.")
    _require(overwrite, path)


def claim_folder(
    path: StrPath, verb: str, known: Sequence[str], mark: str, inputs: Iterable[StrPath] = (), overwrite: bool = False
) -> None:
    """Raise `UserError` unless the folder `path` may be written, or replaced as a whole.

    Args:
        path: The folder to write.
        verb: Who writes it.
        known: Patterns of all that the verb writes into it; a folder that holds anything else is kept.
        mark: The file without which the folder is none of the verb's.
        inputs: As of `claim_file`.
        overwrite: As of `claim_file`.
    """
    _spare(path, inputs)
    place = check_folder(path, known)
    if place.is_dir() and any(place.iterdir()):
        if not (place / mark).is_file():
            raise UserError(f"The folder {path} holds something else than `{verb}` writes: choose another, or move it.")
        _require(overwrite, path)


def claim_workplace(
    path: StrPath, verb: str, names: Sequence[str], marks: Sequence[str] = (), inputs: Iterable[StrPath] = ()
) -> None:
    """Mark the folder `path` as one that `verb` works in. Raises `UserError` where that would touch what is not its own.

    Args:
        path: The folder; a later call of the verb goes on in it.
        verb: Who works there.
        names: What it writes there, and what therefore must not be there before it comes.
        marks: Files that earlier versions left and that tell their folder just as well.
        inputs: As of `claim_file`: none may be among `names`.
    """
    place = check_folder(path)
    for name in names:
        _spare(place / name, inputs, path)
    marked = place / MARK
    if any((place / name).is_file() for name in marks):
        owner = verb
    else:
        owner = _text(marked) if marked.is_file() else ""
    found = [name for name in names if os.path.lexists(place / name)]
    if found and owner != verb:
        first = Path(path) / found[0]
        raise UserError(f"{first} is there already, and `{verb}` did not write it: choose another --out, or move it.")
    if owner != verb:
        write_text(marked, verb + "\n")


def is_audio_of(verb: str) -> Callable[[Path], bool]:
    """Whether an audio file was written by `verb`."""

    def ours(path: Path) -> bool:
        import soundfile  # it imports numpy, for which no `--help` should wait

        with soundfile.SoundFile(path) as file:
            return bool(file.comment == software(verb))

    return ours


def is_json_with(*names: str) -> Callable[[Path], bool]:
    """Whether a file is JSON, or JSON lines, whose first object has the fields `names`."""

    def ours(path: Path) -> bool:
        with path.open(encoding="utf-8") as stream:
            first = stream.readline(1 << 20)
            try:
                value: Any = json.loads(first)
            except ValueError:
                value = json.loads(first + stream.read(1 << 26))
        return isinstance(value, dict) and set(names) <= value.keys()

    return ours


def is_npz_of(*names: str) -> Callable[[Path], bool]:
    """Whether a file is an archive of exactly the arrays `names`."""

    def ours(path: Path) -> bool:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist()) == {f"{name}.npy" for name in names}

    return ours


def is_text_with(text: bytes) -> Callable[[Path], bool]:
    """Whether `text` stands in the file."""
    return lambda path: text in path.read_bytes()


def source_paths(text: StrPath) -> list[Path]:
    """The files and folders that a source or model string may mean: itself, ``name=path``, ``corpus:path``, ``path::root``."""
    whole = os.path.expanduser(os.fspath(text))
    parts = {whole, whole.partition("=")[2], whole.partition(":")[2], whole.partition("::")[0]}
    return [Path(os.path.realpath(part)) for part in sorted(parts) if part and os.path.exists(part)]


def _spare(path: StrPath, inputs: Iterable[StrPath], said: StrPath | None = None) -> None:
    """Raise `UserError` if `path` is an input or a folder around one."""
    place = Path(os.path.realpath(path))
    if not os.path.exists(place):
        return
    for text in inputs:
        for source in source_paths(text):
            if place == source or place in source.parents or os.path.samefile(place, source):
                raise UserError(
                    f"The output {said or path} would replace the input {text}: choose another place for it."
                )


def _require(overwrite: bool, path: StrPath) -> None:
    if not overwrite:
        raise UserError(f"{path} is there already: add --overwrite to replace it, or choose another name.")


def _judged(ours: Callable[[Path], bool], place: Path) -> bool:
    """What `ours` says of a file; one that it cannot read is another's."""
    try:
        return ours(place)
    except Exception:  # any reader may meet any file here
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError):
        return ""
