"""int8: which nodes become 8-bit, and with which ranges.

Weights are signed and scaled per output channel, as `eight_bits` says, so that a file computes the same on every processor.
The activations of the front end, whose frames differ by forty decibels, are scaled frame by frame (front_end.py); those
behind it unsigned and per tensor (static, QDQ). What loses accuracy and is cheap
stays in float32: the first block (it normalises), the products between activations inside attention, softmax and
normalisations, and the heads. The outputs of matrix products stay in float32 as well; those of static convolutions have to be
8-bit for an engine to compute the convolution in 8 bits.

Ranges are not the extremes that were seen but those with the least squared error: a few large values would otherwise take
the resolution from all others. In front of a GELU, which maps everything far below zero to zero, the error is that of the
GELU's output, so that the negative tail costs no resolution.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import optional
from ..progress import Progress
from ..randomness import generator
from .eight_bits import steps
from .front_end import by_rows, convolutions

logger = logging.getLogger(__name__)


FRONT_END = "convolutions"
QUANTISED = ("Conv", "MatMul", "Gemm")
SAMPLES = 1024  # values of each tensor and utterance that take part in the search for its range
Floats = NDArray[np.float32]
Ranges = dict[str, tuple[float, float]]
"""Lowest and highest value of tensors, by the names of the nodes that they enter or leave."""


def quantise(
    model: Any,
    waves: Sequence[Floats | dict[str, NDArray[Any]]],
    keep: Sequence[str] = (),
    progress: Progress | None = None,
    known: Ranges | None = None,
) -> Any:
    """The int8 version of an exported `onnx.ModelProto`, calibrated on `waves` (T,).

    Args:
        model: The graph in float32.
        waves: Utterances (T,), or the inputs of a stream's steps.
        keep: Further nodes that stay in float32, by the beginnings of their names.
        progress: Called with (utterances done, utterances in all).
        known: Ranges that were found before on the same waves; those that are found are added.

    Raises:
        UserError: A package is missing.
    """
    onnx, onnxruntime = (optional(name, "export", "Quantising") for name in ("onnx", "onnxruntime"))
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Single(CalibrationDataReader):  # type: ignore[misc]
        """The ranges are given; the quantiser only wants to see the graph run once."""

        def __init__(self) -> None:
            self.left = [feeds(waves[0])]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    with tempfile.TemporaryDirectory() as folder, _quiet():
        raw, shaped, done = (str(Path(folder) / name) for name in ("raw.onnx", "shaped.onnx", "int8.onnx"))
        onnx.save(model, raw)
        # Optimising before quantisation would fuse nodes and lose the names that decide what stays.
        quant_pre_process(raw, shaped, skip_symbolic_shape=True, skip_optimization=True)
        graph = onnx.load(shaped).graph
        rows = bool(convolutions(graph)) and FRONT_END not in keep
        chosen = quantisable(graph, (*keep, FRONT_END) if rows else keep)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        ranges = _ranges(shaped, graph, chosen, waves, options, progress, {} if known is None else known)
        quantize_static(
            shaped,
            done,
            Single(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_quantize=[node.name for node in chosen],
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            extra_options={
                "TensorQuantOverrides": {
                    name: [{"rmin": np.float32(low), "rmax": np.float32(high)}] for name, (low, high) in ranges.items()
                }
                | _weight_ranges(graph, chosen),
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            },
        )
        return by_rows(onnx.load(done)) if rows else onnx.load(done)


def quantisable(graph: Any, keep: Sequence[str] = ()) -> list[Any]:
    """The nodes that become 8-bit: convolutions and products with constant weights outside the first block and the heads."""
    constants = {tensor.name for tensor in graph.initializer}
    outside = ("first", "head.", *keep)
    inside = [node for node in graph.node if node.op_type in QUANTISED and not node.name.startswith(outside)]
    return [node for node in inside if node.input[1] in constants]


def feeds(wave: Floats | dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The inputs of a graph for one utterance (T,); those of a stream's step are given as they are."""
    return wave if isinstance(wave, dict) else {"wave": wave[None], "lengths": np.array([len(wave)], np.int64)}


def _ranges(
    path: str,
    graph: Any,
    nodes: Sequence[Any],
    waves: Sequence[Floats | dict[str, NDArray[Any]]],
    options: Any,
    progress: Progress | None,
    known: Ranges,
) -> Ranges:
    """Lowest and highest value of every activation that is stored in 8 bits, by its name."""
    import onnx
    import onnxruntime

    before_gelu = {node.input[0] for node in graph.node if node.op_type == "Gelu"}
    # By the nodes' names, which are the modules', because the exporter numbers its tensors anew with every change of a graph.
    tensors = {node.input[0]: f"into {node.name}" for node in nodes}
    tensors |= {node.output[0]: f"out of {node.name}" for node in nodes if node.op_type == "Conv"}
    missing = [name for name, told in tensors.items() if told not in known]
    model = onnx.load(path)
    given = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing if name not in given)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    seen: dict[str, list[Floats]] = {name: [] for name in missing}
    for number, wave in enumerate(waves if missing else (), 1):
        for name, value in zip(missing, session.run(missing, feeds(wave)), strict=True):
            flat = value.reshape(-1)
            some = generator("calibration", tensors[name], number).integers(len(flat), size=SAMPLES)
            seen[name].append(np.append(flat[some], (flat.min(), flat.max())))
        if progress is not None:
            progress(number, len(waves))
    known |= {tensors[name]: best_range(np.concatenate(found), name in before_gelu) for name, found in seen.items()}
    return {name: known[told] for name, told in tensors.items()}


def _weight_ranges(graph: Any, nodes: Sequence[Any]) -> dict[str, list[dict[str, Any]]]:
    """Symmetric ranges of the weights of `nodes`, by output channel, which is the first axis of a convolution's weights and
    the last of a product's."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    result = {}
    for node in nodes:
        turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        axis = 0 if node.op_type == "Conv" or turned else 1
        weight = np.moveaxis(numpy_helper.to_array(constants[node.input[1]]), axis, 0)
        ends = 127 * steps(weight)
        result[node.input[1]] = [{"axis": axis, "rmin": -end, "rmax": end} for end in ends]
    return result


def best_range(values: Floats, before_gelu: bool = False) -> tuple[float, float]:
    """The range [low, high] around 0 with the least squared error of 8-bit `values` (or of their GELU)."""
    from scipy.special import erf

    def shape(x: NDArray[Any]) -> NDArray[Any]:
        return 0.5 * x * (1 + erf(x / np.sqrt(2))) if before_gelu else x

    values = values.astype(np.float64)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if low == high:
        return low, high
    wanted = shape(values)

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        zero = round(-low / step)
        levels = shape((np.arange(256) - zero) * step)
        codes = np.clip(np.rint(values / step) + zero, 0, 255).astype(np.uint8)
        return float(np.square(levels[codes] - wanted).mean())

    # One end after the other, on a logarithmic grid: the error has one valley in each.
    shares = 0.02 ** np.linspace(0, 1, 40)
    for _ in range(2):
        high = min((share * max(float(values.max()), 0.0) for share in shares), key=lambda end: error(low, end))
        low = min((share * min(float(values.min()), 0.0) for share in shares), key=lambda end: error(end, high))
    return low, high


class _quiet:  # noqa: N801
    """Keep the quantiser's advice out of the log."""

    def __enter__(self) -> None:
        self.level = logging.root.level
        logging.root.setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        logging.root.setLevel(self.level)
