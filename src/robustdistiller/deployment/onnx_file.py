"""An ONNX file that carries its own description."""

from __future__ import annotations

import hashlib
from typing import Any

from ..files import StrPath, replacing
from ..runtime.container import KEY, Description


def write_model(path: StrPath, model: Any, description: Description) -> None:
    """Write an `onnx.ModelProto` followed by its description, atomically.

    The digest in the description is that of all bytes before it, see runtime/container.py.
    """
    import onnx

    del model.metadata_props[:]
    body = model.SerializeToString()
    entry = onnx.StringStringEntryProto(key=KEY, value=description.to_json(hashlib.sha256(body).hexdigest()))
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(body)
        # The fields of a protobuf message may come in any order, so that appending one is writing it last.
        stream.write(onnx.ModelProto(metadata_props=[entry]).SerializeToString())
