"""The engine that computes a graph: ONNX Runtime, or OpenVINO where it is installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError, explained, optional
from .container import KINDS, Description, describe

Arrays = list[NDArray[Any]]


class Engine(Protocol):
    """Feeds by name → outputs in the order of the graph."""

    def run(self, feeds: dict[str, NDArray[Any]]) -> Arrays: ...


class OnnxRuntime:
    """The ordinary engine: the processor provider of ONNX Runtime."""

    def __init__(self, path: Path, threads: int | None):
        onnxruntime = optional("onnxruntime", "", "Running an exported model")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.inter_op_num_threads = 1
        if threads is not None:
            options.intra_op_num_threads = threads
        # Waiting threads would otherwise keep a small device busy between two windows.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, feeds: dict[str, NDArray[Any]]) -> Arrays:
        return self.session.run(None, feeds)  # type: ignore[no-any-return]


class OpenVino:
    """The same file in OpenVINO, in the precision of the file: its default on some processors is bfloat16."""

    def __init__(self, path: Path, threads: int | None):
        openvino = optional("openvino", "", "The OpenVINO engine")
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self.model = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(self, feeds: dict[str, NDArray[Any]]) -> Arrays:
        result = self.model(feeds)
        return [np.array(result[k]) for k in range(len(self.model.outputs))]


ENGINES: dict[str, Callable[[Path, int | None], Engine]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def open_graph(
    path: str | os.PathLike[str],
    kind: str,
    engine: str = "onnxruntime",
    threads: int | None = None,
    verify: bool = True,
) -> tuple[Description, Engine]:
    """Check a file and load it.

    kind: what it must hold; engine: onnxruntime or openvino; threads: None for as many as there are cores.
    Raises `UserError` for a file that `describe` refuses, another kind of model, an engine that is not there, a graph
    that the engine cannot load, or an int8 file for OpenVINO.
    """
    if engine not in ENGINES:
        raise UserError(f"There is no engine '{engine}': choose {' or '.join(ENGINES)}.")
    if threads is not None and threads < 1:
        raise UserError(f"{threads} threads cannot work: give at least 1.")
    description = describe(path, verify)
    if description.kind != kind:
        right = f"{KINDS[description.kind]}, not {KINDS[kind]}"
        other = f", or export the student with --task HEAD for a {kind}" if kind in ("classifier", "detector") else ""
        raise UserError(f"{path} holds {description.named}: open it with {right}{other}.")
    if engine == "openvino" and description.precision == "int8":
        # OpenVINO 2026.4 computes 8-bit grouped convolutions, such as the position convolution, wrongly.
        raise UserError(f"OpenVINO gives wrong numbers for {path} (int8): give the fp32 file, or use onnxruntime.")
    with explained(f"{engine} cannot load {path}", f"export it again, or update {engine}."):
        made = ENGINES[engine](Path(path), threads)
        if isinstance(made, OnnxRuntime) and not _fits(made.session, description):
            raise UserError(f"The graph in {path} is not what its description says: export the student again.")
        return description, made


def _fits(session: Any, description: Description) -> bool:
    """Whether inputs and outputs are those of the kind that a description claims; streams check theirs themselves."""
    ranks = {"encoder": [4, 1], "enhancer": [2], "classifier": [2] * len(description.labels)}.get(description.kind)
    if ranks is None:
        return True
    inputs = {value.name: len(value.shape) for value in session.get_inputs()}
    outputs = [value.shape for value in session.get_outputs()]
    if inputs != {"wave": 2, "lengths": 1} or [len(shape) for shape in outputs] != ranks:
        return False
    expected = [len(labels) for labels in description.labels.values()]
    if description.kind == "encoder":
        return outputs[0][1] in (len(description.states), None) and outputs[0][3] in (description.hidden, None)
    return description.kind != "classifier" or [shape[1] for shape in outputs] == expected
