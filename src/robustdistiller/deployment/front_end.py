"""The convolutions of the front end in 8 bits, with a scale for every frame of every utterance, taken as it arrives.

A quiet frame is forty decibels below a loud one behind the first block, and a LayerNorm behind the last makes both equally
large: with one scale for all of them, as in static int8, the quiet ones are gone. Here a convolution of stride 2 is a matrix
product over patches of frames, channels last; every patch is a row that is divided by its own largest value before it becomes
8-bit, and multiplied by it after the product. Nothing has to be calibrated.

What this costs is not arithmetic but memory: tensors of tens of megabytes, passed over again and again. The graph therefore
works through a recording in stretches of some 16 final frames, which stay in the processor's cache. They overlap by the few
frames that the kernels need, so that the result is that of the whole. The convolutions of the paper's student take 74 ms for
5 s of audio on one thread in this way, 100 ms in one piece, and 218 ms in float32.

Shapes: B utterances, F0 frames of the first block, F of the last, C and N channels, K columns of the first block's patches
(ten samples, and a one for the bias). A stretch has R frames of the first block, S of the last; P counts patches of all rows.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .eight_bits import steps

STRETCH = 16  # final frames: more leave the cache, fewer pay more for the start of every operator
PREFIX = "front_end."
FIRST, OTHERS = "first.activation/", "convolutions."  # what the nodes are called, see graph.EncoderGraph
Constants = dict[str, Any]  # arrays and NumPy's scalars

# All of it. rows (B, K, F0) and weight (B, C, K) are the factors of the first block's product. All stretches are equally long,
# so that a short recording is not filled up to a multiple; the last may repeat the last row, for frames that are cut off.
WHOLE = """
whole (float[B, C, K] weight, float[B, K, F0] rows) => (float[B, N, F] result) {{
    total = Shape <start = 2, end = 3> (rows)
    enough = Sub (total, beyond)
    frames = Div (enough, every)
    filled = Add (frames, stretch_less_one)
    count = Div (filled, stretch)
    divided = Add (frames, count)
    divided_less_one = Sub (divided, one)
    size = Div (divided_less_one, count)
    step = Mul (size, every)
    length = Add (step, overlap)
    numbers = Range (zero0, count, one0)
    starts = Mul (numbers, step)
    inside = Range (zero0, length, one0)
    column = Unsqueeze (starts, one)
    wished = Add (column, inside)
    highest = Sub (total, one)
    index = Min (wished, highest)
    columns = Transpose <perm = [0, 2, 1]> (rows)
    gathered = Gather <axis = 1> (columns, index)
    stretches = Transpose <perm = [1, 0, 2, 3]> (gathered)
    filters = Transpose <perm = [0, 2, 1]> (weight)
    made = Scan <num_scan_inputs = 1, body = body (float[B, R, K] part) => (float[B, S, N] last) {{
        batch = Shape <start = 0, end = 1> (part)
        product = MatMul (part, filters)
        x0 = Gelu (product)
        {stages}
        last_shape = Concat <axis = 0> (batch, final)
        last = Reshape ({x}, last_shape)
    }}> (stretches)
    ordered = Transpose <perm = [1, 0, 2, 3]> (made)
    joined = Reshape (ordered, joined_shape)
    cut = Slice (joined, zero, frames, one)
    result = Transpose <perm = [0, 2, 1]> (cut)
}}
"""
# One convolution of a kernel of {size}: {x} (…, C) → x{j} (P, N). A patch's largest value is a pooling with the kernel's own
# grid. The last patch of a stretch, or of an utterance in it, may reach too far: what it gives is dropped later.
STAGE = """
        flat{i} = Reshape ({x}, single{i})
        high{i} = ReduceMax <keepdims = 0> (flat{i}, minus_one)
        low{i} = ReduceMin <keepdims = 0> (flat{i}, minus_one)
        depth{i} = Neg (low{i})
        peak{i} = Max (high{i}, depth{i}, floor)
        line{i} = Unsqueeze (peak{i}, both)
        reach{i} = MaxPool <kernel_shape = [{size}], strides = [2], pads = [0, {beyond}]> (line{i})
        scales{i} = Mul (reach{i}, step127)
        scale{i} = Reshape (scales{i}, minus_one)
        middle_shape{i} = Shape (scale{i})
        middle{i} = ConstantOfShape <value = uint8[1] {{128}}> (middle_shape{i})
        pairs{i} = Reshape ({x}, pair{i})
        pairs_in_8_bits{i} = QuantizeLinear <axis = 0> (pairs{i}, scale{i}, middle{i})
        {patch}
        unscaled{i} = com.microsoft.MatMulIntegerToFloat (patch{i}, weight{i}, unit, channels{i}, centre)
        tall{i} = Unsqueeze (scale{i}, minus_one)
        scaled{i} = Mul (unscaled{i}, tall{i})
        x{j} = Gelu (scaled{i})
"""
PATCH = {
    2: "patch{i} = Identity (pairs_in_8_bits{i})",
    # The third frame of a patch is the first of the next pair, in the scale of its own patch.
    3: """
        thirds{i} = Slice (flat{i}, two, end, zero, two)
        their_scale{i} = Slice (scale{i}, zero, minus_one, zero)
        their_middle{i} = Slice (middle{i}, zero, minus_one, zero)
        thirds_in_8_bits{i} = QuantizeLinear <axis = 0> (thirds{i}, their_scale{i}, their_middle{i})
        full{i} = Concat <axis = 0> (thirds_in_8_bits{i}, silence{i})
        patch{i} = Concat <axis = 1> (pairs_in_8_bits{i}, full{i})""",
}
# Behind the last kernel of 3 an odd frame is left over.
DROP = """
        odd_shape = Concat <axis = 0> (batch, odd)
        uneven = Reshape ({x}, odd_shape)
        even = Slice (uneven, zero, minus_one, one)
"""


def convolutions(graph: Any) -> list[Any]:
    """The convolutions behind a first block with GroupNorm, if they are such as can be written by rows, else none.

    The front end of the large models has no GroupNorm: a norm of its own keeps every frame at the same level.
    """
    nodes = [node for node in graph.node if node.name.startswith(OTHERS)]
    first = [node for node in graph.node if node.name.startswith(FIRST)]
    found = [node for node in nodes if node.op_type == "Conv"]
    if [node.op_type for node in first + nodes] != ["Gelu", *("Conv", "Gelu") * len(found)]:
        return []
    settings = [{a.name: list(a.ints) for a in node.attribute if a.ints} for node in found]
    kernels = [s.get("kernel_shape", [0])[0] for s in settings]
    plain = all(s.get("strides") == [2] and not any(s.get("pads", ())) for s in settings)
    ordered = set(kernels) <= {2, 3} and kernels == sorted(kernels, reverse=True)
    return found if found and plain and ordered and all(len(node.input) == 2 for node in found) else []


def by_rows(model: Any) -> Any:
    """The model with its `convolutions` in 8 bits by rows; the other nodes stay as they are."""
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    found = convolutions(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    weights = [numpy_helper.to_array(constants[node.input[1]]) for node in found]
    replaced = [node for node in graph.node if node.name.startswith((FIRST, OTHERS))]
    (at,) = [k for k, node in enumerate(graph.node) if node.output[0] == replaced[0].input[0]]
    product = graph.node[at]
    names = {"weight": product.input[0], "rows": product.input[1], "result": replaced[-1].output[0]}

    text, values = _written(weights)
    made = onnx.parser.parse_graph(text)
    _rename(made, names)
    gone = {node.name for node in (product, *replaced)}
    nodes = [node for node in graph.node if node.name not in gone]
    nodes[at:at] = made.node
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    unused = {node.input[1] for node in found}
    kept = [tensor for tensor in graph.initializer if tensor.name not in unused]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for name, value in values.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), PREFIX + name))
    if all(entry.domain != "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return model


def _written(weights: list[NDArray[np.float32]]) -> tuple[str, Constants]:
    """The graph as text, and its constants by name. weights: (N, C, size) of every convolution"""
    kernels = [weight.shape[2] for weight in weights]
    threes, every = kernels.count(3), 2 ** len(kernels)
    values: Constants = {
        "zero0": np.int64(0), "one0": np.int64(1), "zero": _integers(0), "one": _integers(1), "two": _integers(2),
        "minus_one": _integers(-1), "both": _integers(0, 1),
        "end": _integers(2**62), "every": _integers(every), "stretch": _integers(STRETCH),
        "stretch_less_one": _integers(STRETCH - 1), "overlap": _integers(2**threes), "beyond": _integers(2**threes - 1),
        "floor": np.full(1, 1e-12, np.float32), "step127": np.float32(1 / 127), "unit": np.float32(1),
        "centre": np.uint8(128), "final": _integers(-1, len(weights[-1])), "joined_shape": _integers(0, -1, len(weights[-1])),
    }  # fmt: skip
    stages, x = [], "x0"
    for i, weight in enumerate(weights):
        j, size, channels = i + 1, weight.shape[2], weight.shape[1]
        stages.append(STAGE.format(i=i, j=j, x=x, size=size, beyond=size - 2, patch=PATCH[size].format(i=i)))
        x = f"x{j}"
        if j == threes:
            stages.append(DROP.format(x=x))
            x = "even"
            values["odd"] = _integers(-1, len(weight))
        scale = steps(weight)
        in_8_bits = np.rint(weight / scale[:, None, None]).astype(np.int8)
        values |= {
            f"weight{i}": in_8_bits.transpose(2, 1, 0).reshape(size * channels, -1), f"channels{i}": scale,
            f"pair{i}": _integers(-1, 2 * channels), f"single{i}": _integers(-1, channels),
            f"silence{i}": np.full((1, channels), 128, np.uint8),
        }  # fmt: skip
    return WHOLE.format(stages="".join(stages), x=x), values


def _integers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _rename(graph: Any, outside: dict[str, str]) -> None:
    """Give the names of `outside` to what comes from and goes to other nodes, and a prefix to all others."""

    def named(name: str) -> str:
        return outside.get(name) or (PREFIX + name if name else "")

    for value in itertools.chain(graph.input, graph.output):
        value.name = named(value.name)
    for number, node in enumerate(graph.node):
        node.name = f"{PREFIX}{node.op_type}.{number}"
        node.input[:] = [named(name) for name in node.input]
        node.output[:] = [named(name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, outside)
