"""From a network to an ONNX file that carries its own description."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, optional
from ..files import StrPath, replacing
from ..runtime.container import KEY, Description

# (input name, an example, its dynamic axes); every batch and time axis of every graph here is free.
Inputs = Sequence[tuple[str, Tensor, tuple[int, ...]]]

# GELU is an operator since opset 20; both are what onnxruntime 1.17, the oldest that the packages allow, can read.
OPSET, IR_VERSION = 20, 9
AXES = {
    "wave": ("batch", "samples"), "lengths": ("batch",), "states": ("batch", "", "frames", ""), "frames": ("batch",),
    "enhanced": ("batch", "samples"), "levelled": ("batch", "samples"),
}  # fmt: skip
"""Names of the free axes of inputs and outputs; of all others, such as probabilities, the first is the batch."""


def trace(module: nn.Module, inputs: Inputs, outputs: Sequence[str]) -> Any:
    """Export `module` with the dynamo exporter: an `onnx.ModelProto` with one main domain, free of notes and paths.

    inputs: name, example, and dynamic axes of each. Raises `UserError` when a package is missing or too old.
    """
    onnx, _ = (optional(name, "export", "Exporting") for name in ("onnx", "onnxscript"))
    if not hasattr(torch.onnx, "ops"):
        raise UserError(f"Exporting needs PyTorch 2.8 or newer, and this is {torch.__version__}: update it.")
    shapes = {name: {axis: torch.export.Dim.DYNAMIC for axis in axes} for name, _, axes in inputs}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(), tuple(example for _, example, _ in inputs), dynamo=True,
            dynamic_shapes=shapes if any(shapes.values()) else None, input_names=[name for name, _, _ in inputs],
            output_names=list(outputs), opset_version=OPSET, verbose=False, optimize=True,
        )  # fmt: skip
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        program.save(str(path), external_data=False)
        model = onnx.load(str(path))
    model.ir_version = IR_VERSION
    return _bare(_with_axes(model))


def _with_axes(model: Any) -> Any:
    """Name the free axes of inputs and outputs after what they count, where the exporter writes ``s2`` and ``s21 // 80``."""
    for value in (*model.graph.input, *model.graph.output):
        for dim, name in zip(value.type.tensor_type.shape.dim, AXES.get(value.name, ("batch", "")), strict=False):
            if name:
                dim.dim_param = name
    return model


def join(first: Any, second: Any, wires: dict[str, str] | None = None) -> Any:
    """One model that runs `first`, then `second`; what `second` does not consume of `first` is no longer an output.

    wires: output of `first` → input of `second` where the names differ. Inputs of `second` that `first` does not give
    stay inputs, and are shared where `first` has an input of that name. Names inside the two must differ: see `renamed`.
    """
    import onnx

    wires = wires or {}
    given = {wires.get(value.name, value.name): value.name for value in first.graph.output}
    own = {value.name for value in first.graph.input}
    wanted = {value.name for value in second.graph.input}
    if first.functions or second.functions or first.opset_import[0].version != second.opset_import[0].version:
        raise ValueError("only flat models of one opset can be joined")
    joined = onnx.ModelProto()
    joined.CopyFrom(first)
    del joined.graph.output[:], joined.graph.value_info[:]
    for node in second.graph.node:
        new = joined.graph.node.add()
        new.CopyFrom(node)
        new.input[:] = [given[name] if name in given and name in wanted else name for name in node.input]
    joined.graph.initializer.extend(second.graph.initializer)
    joined.graph.input.extend(v for v in second.graph.input if v.name not in given and v.name not in own)
    joined.graph.output.extend(second.graph.output)
    onnx.checker.check_model(joined)  # notices names that occur in both
    return joined


def renamed(model: Any, prefix: str) -> Any:
    """The model with `prefix` before every name inside it; its inputs and outputs keep theirs."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    outside = {value.name for value in (*graph.input, *graph.output)} | {""}
    for node in graph.node:
        node.name = prefix + node.name
        node.input[:] = [name if name in outside else prefix + name for name in node.input]
        node.output[:] = [name if name in outside else prefix + name for name in node.output]
    for tensor in graph.initializer:
        tensor.name = prefix + tensor.name
    del graph.value_info[:]
    return copy


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


def _bare(model: Any) -> Any:
    """Name every node after the module that it comes from, and remove what else is noted beside the graph.

    The exporter writes stack traces there, and with them paths of this machine.
    """
    graph = model.graph
    counts: dict[str, int] = {}
    for node in graph.node:
        noted = {entry.key: entry.value for entry in node.metadata_props}
        # A list of nested module names, then the node itself: "['', 'encoder', 'encoder.conv', 'conv1d']".
        scopes = ast.literal_eval(noted.get("pkg.torch.onnx.name_scopes", "[]"))
        name = f"{scopes[-2] if len(scopes) > 1 else ''}/{node.op_type}"
        counts[name] = counts.get(name, 0) + 1
        node.name = name if counts[name] == 1 else f"{name}.{counts[name]}"
    for item in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del item.metadata_props[:]
        item.doc_string = ""
    del model.metadata_props[:]
    model.doc_string = ""
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings, which concern its own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
