"""What an exported file says of itself, read and checked before any engine touches the file.

An exported ``.onnx`` is an ordinary ONNX model followed by one metadata entry, JSON under the key ``robustdistiller``. It
holds a digest of all bytes before it, so that a file that was cut short, damaged or edited is recognised at once. Reading it
needs no protobuf library: the entry is found by its key at the end of the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UserError

KEY = "robustdistiller"
FORMAT = 1
KINDS = {
    "encoder": "Encoder", "enhancer": "Enhancer", "classifier": "Classifier", "stream": "Stream",
    "detector": "Detector",
}  # fmt: skip

_KEY_FIELD = b"\x0a" + bytes([len(KEY)]) + KEY.encode() + b"\x12"  # of the entry: its key, and the tag of its value
_LONGEST = 1 << 20  # bytes of an entry that are believed


@dataclass(frozen=True)
class Description:
    """An exported model.

    kind: encoder, enhancer or classifier; precision: fp32 or int8; states: what the encoder shows, in order; hidden: D
    sampling_rate in Hz; stride and field of a frame in samples (frame f is centred at sample stride·f + field/2)
    normalize: whether the graph brings its input to zero mean and unit variance (nothing is left to the caller)
    labels: the answers of a classifier by slot; weights: SHA-256 of the student's weight files
    parameters: of the whole graph; macs_per_second: of the encoder, for a second of audio out of five
    measured: what the export measured, see docs/deployment.md; stream: of a streaming step, see deployment/stream_export.py
    """

    kind: str
    precision: str
    student: str
    sampling_rate: int
    stride: int
    field: int
    normalize: bool
    states: tuple[str, ...] = ()
    hidden: int = 0
    labels: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    task: str = ""
    licence: str = "unknown"
    weights: str = ""
    parameters: int = 0
    macs_per_second: float = 0.0
    version: str = ""
    measured: dict[str, Any] = dataclasses.field(default_factory=dict)
    stream: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def named(self) -> str:
        """Its kind with an article: "an encoder", "a stream"."""
        return f"{'an' if self.kind[0] == 'e' else 'a'} {self.kind}"

    def to_json(self, digest: str) -> str:
        """The metadata entry of a file whose other bytes have the SHA-256 `digest`."""
        return json.dumps({"format": FORMAT, "digest": digest, **vars(self)}, sort_keys=True)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Description:
        """The inverse of `to_json`; raises `KeyError`, `TypeError` or `ValueError` for values of another shape."""
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        known["states"] = tuple(str(name) for name in known.get("states", ()))
        known["labels"] = {str(k): tuple(str(x) for x in v) for k, v in known.get("labels", {}).items()}
        made = cls(**known)
        numbers = (made.sampling_rate, made.stride, made.field, made.hidden)
        if made.kind not in KINDS or not all(type(n) is int and 0 <= n <= 1 << 20 for n in numbers) or 0 in numbers[:3]:
            raise ValueError("impossible values")
        return made


def describe(path: str | os.PathLike[str], verify: bool = True) -> Description:
    """Read and check the description of an exported file.

    verify: also compare the digest of the whole file (about a second for a gigabyte). Raises `UserError` for a file that is
    missing, no ONNX file, not made by RobustDistiller, of a newer format, truncated or damaged.
    """
    path = Path(path)
    if os.path.isdir(path):
        names = sorted(file.name for file in path.glob("*.onnx"))
        raise UserError(
            f"{path} is a folder: give one of its files ({', '.join(names)})."
            if names
            else f"{path} is a folder without an .onnx file: give a file that `robustdistiller export` wrote."
        )
    if not os.path.isfile(path):
        raise UserError(f"There is no file {path}: check the path, or export a student first.")
    try:
        with path.open("rb") as stream:
            length, text = _scan(stream, path)
            values = _values(text, path)
            if verify and _digest(stream, length) != values.get("digest"):
                raise UserError(f"{path} is damaged or was edited: copy it again (verify=False opens it regardless).")
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror or error}): check its permissions.") from error
    try:
        return Description.from_values(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"The description inside {path} cannot be understood: export the student again.") from error


def _values(text: str, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("format"), int):
        raise UserError(f"The description inside {path} cannot be understood: export the student again.")
    if values["format"] > FORMAT:
        raise UserError(f"{path} was made by a newer version of RobustDistiller: update the one that reads it.")
    return values


def _scan(stream: BinaryIO, path: Path) -> tuple[int, str]:
    """The bytes before the entry at the end of a file (-1 where more follows, for no digest holds then), and its text."""
    size = os.fstat(stream.fileno()).st_size
    stream.seek(max(0, size - _LONGEST))
    tail = stream.read()
    at = tail.rfind(_KEY_FIELD)
    value, begin = _varint(tail, at + len(_KEY_FIELD))
    end = begin + value
    if at < 0 or end > len(tail):
        what = "cut short, no ONNX file, or not one that `robustdistiller export` wrote"
        raise UserError(f"{path} is {what}: copy it again, or export the student.")
    head = 1 + max(1, -(-(end - at).bit_length() // 7))  # tag and length of the entry
    return (size - len(tail) + at - head if end == len(tail) else -1), tail[begin:end].decode("utf-8", "replace")


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A number in protobuf's writing, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position] if position < len(message) else 0
        value, position = value | (byte & 0x7F) << shift, position + 1
        if byte < 0x80:
            break
    return value, position


def _digest(stream: BinaryIO, length: int) -> str:
    total = hashlib.sha256()
    stream.seek(0)
    while length > 0:
        block = stream.read(min(length, 1 << 20))
        if not block:
            break
        total.update(block)
        length -= len(block)
    return total.hexdigest()
