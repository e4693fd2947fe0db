"""ATen's operations in ONNX, by name: what tracing.py writes for each.

A function takes the graph, the result (a `Value` whose sizes and type are known from the examples) and the operation's own
arguments, and returns the name of the result, the value that it equals, or a list of these for operations with several.
Shapes follow ATen's; where a size is free, it is read from a tensor that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .tracing import FAR, Free, Graph, Value, onnx_type


def _binary(op: str, g: Graph, y: Value, a: Any, b: Any, *, alpha: Any = 1, rounding_mode: Any = None) -> Any:
    """Tensors of other types, and numbers, become of the result's type; of a common one where they are compared."""
    dtype = y.dtype
    if op in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"):
        dtype = torch.result_type(*(x.first if isinstance(x, Value) else x for x in (a, b)))
    a, b = g.cast(a, dtype), g.cast(b, dtype)
    if alpha != 1:
        b = g.node("Mul", b, g.cast(alpha, dtype))
    if op == "Pow" and np.array_equal(b, 2):
        return g.node("Mul", a, a)
    if rounding_mode is None:
        return g.node(op, a, b)
    if dtype.is_floating_point:
        return g.node("Floor", g.node(op, a, b))
    return g.node(op, g.node("Sub", a, g.node("Mod", a, b)), b)  # ONNX's division rounds to zero


def _product(g: Graph, y: Value, a: Value, b: Value) -> Any:
    """Of matrices; of views that only take leading axes together, the product of the wholes."""
    right = b if b.rank == 2 else b.whole
    if a.whole is None or right is None or (b.rank == 3 and a.whole.shape[:-2] != right.shape[:-2]):
        return g.node("MatMul", a, b)
    wholes = ((a.whole.first, b.first), (a.whole.second, b.second))
    first, second = (x.new_empty(*x.shape[:-1], z.shape[-1]) for x, z in wholes)
    y.whole = Value(first, second, g.node("MatMul", a.whole, right))
    return y


def _linear(g: Graph, y: Value, bias: Value, a: Value, b: Value) -> Any:
    product = _product(g, y, a, b)
    if y.whole is None:
        return g.node("Add", product, bias)
    y.whole.name = g.node("Add", y.whole, bias)
    return y


def _baddbmm(g: Graph, y: Value, bias: Value, a: Value, b: Value, *, beta: float = 1, alpha: float = 1) -> Any:
    if alpha != 1 or beta not in (0, 1):
        raise NotImplementedError
    product = g.node("MatMul", a, b)
    return g.node("Add", product, bias) if beta else product


def _view(g: Graph, y: Value, x: Value, shape: Any) -> Any:
    whole, rest = x.whole or x, y.rank - 1
    if y.shape in (x.shape, whole.shape):
        return x if y.shape == x.shape else whole
    if 0 < rest < whole.rank - 1 and y.shape[1:] == whole.shape[-rest:]:
        y.whole = whole  # written when it is needed
        return y
    # 0 stands for an axis that stays where it is, -1 for one that follows from the others.
    told = [0 if isinstance(n, Free) and whole.shape[k : k + 1] == [n] else n for k, n in enumerate(y.shape)]
    free = [k for k, n in enumerate(told) if isinstance(n, Free)]
    if len(free) == 1:
        told[free[0]] = -1
    return g.node("Reshape", whole, g.sizes_of(told))


def _transpose(g: Graph, y: Value, x: Value, one: int = 0, other: int = 1) -> Any:
    order = list(range(x.rank))
    order[one], order[other] = order[other], order[one]
    return g.node("Transpose", x, perm=order)


def _slice(g: Graph, y: Value, x: Value, axis: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    if y.shape == x.shape:
        return x
    end = FAR if end is None or (isinstance(end, int) and end > FAR) else end
    return g.node("Slice", x, g.size(start or 0), g.size(end), [axis], [step])


def _split(g: Graph, y: Value, x: Value, sizes: Any, axis: int = 0) -> Any:
    if isinstance(sizes, int):
        whole = x.first.shape[axis]
        sizes = [min(sizes, whole - k) for k in range(0, whole, sizes)]
    return g.node("Split", x, sizes, outputs=len(sizes), axis=axis) if len(sizes) > 1 else [x]


def _repeat(g: Graph, y: Value, x: Any, counts: Any) -> Any:
    for _ in range(y.rank - x.rank):
        x = g.node("Unsqueeze", x, [0])
    return g.node("Tile", x, g.sizes_of(counts))


def _index(g: Graph, y: Value, x: Value, indices: Sequence[Value]) -> Any:
    """x[i, j, …] with tensors of integers for the first axes."""
    if any(index is None or index.dtype != torch.int64 for index in indices):
        raise NotImplementedError
    shape = y.shape[: y.rank - x.rank + len(indices)]
    columns = [g.node("Unsqueeze", g.node("Expand", index, g.sizes_of(shape)), [-1]) for index in indices]
    return g.node("GatherND", x, g.node("Concat", *columns, axis=-1))


def _index_put(g: Graph, y: Value, x: Value, indices: Sequence[Any], value: Value) -> Any:
    """x[mask] = number"""
    (mask,) = indices
    if mask.dtype != torch.bool or value.first.numel() != 1:
        raise NotImplementedError
    for _ in range(x.rank - mask.rank):
        mask = g.node("Unsqueeze", mask, [-1])
    return g.node("Where", mask, value, x)


def _pad(g: Graph, y: Value, x: Value, pads: Any, value: Any = 0) -> Any:
    pairs = [pads[k : k + 2] for k in range(0, len(pads), 2)]  # ATen's begin with the last axis
    pairs = [(0, 0)] * (x.rank - len(pairs)) + pairs[::-1]
    return g.node("Pad", x, g.sizes_of([*(a for a, _ in pairs), *(b for _, b in pairs)]), g.cast(value, y.dtype))


def _arange(g: Graph, y: Value, *ends: Any) -> Any:
    start, end, step = (0, *ends, 1) if len(ends) == 1 else (*ends, 1)[:3]
    edges = [g.node("Squeeze", g.size(x), [0]) if isinstance(x, Free) else x for x in (start, end)]
    made = g.node("Range", *edges, step)
    return made if y.dtype == torch.int64 else g.node("Cast", made, to=onnx_type(y.dtype))


def _filled(g: Graph, y: Value, *others: Any) -> Any:
    """A tensor of a free size that is the same everywhere; of one that is to be written over it does not matter what."""
    return g.node("Expand", y.first.flatten()[0].numpy(), g.sizes_of(y.shape))


def _clamp(g: Graph, y: Value, x: Value, low: Any = None, high: Any = None) -> Any:
    return g.node("Clip", x, *("" if end is None else g.cast(end, y.dtype) for end in (low, high)))


def _reduce(op: str, g: Graph, y: Value, x: Value, axes: Any = None, keepdim: bool = False) -> Any:
    return g.node(op, g.cast(x, y.dtype), axes or "", keepdims=int(keepdim))


def _layer_norm(g: Graph, y: Value, x: Value, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    weight = np.ones(shape, np.float32) if weight is None else weight
    bias = np.zeros(shape, np.float32) if bias is None else bias  # onnxruntime falls over one without
    return [g.node("LayerNormalization", x, weight, bias, axis=-len(shape), epsilon=eps)]


def _convolution(
    g: Graph, y: Value, x: Value, weight: Value, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Any:  # fmt: skip
    return g.node(
        "ConvTranspose" if transposed else "Conv", x, weight, "" if bias is None else bias, strides=stride,
        pads=[*padding, *padding], dilations=dilation, group=groups, kernel_shape=list(weight.first.shape[2:]),
    )  # fmt: skip


def _lstm(g: Graph, y: Value, x: Value, weight: Value, recurrence: Value, bias: Value, count: Value) -> Any:
    size = recurrence.first.shape[-1]
    return g.node("LSTM", x, weight, recurrence, bias, count, direction="bidirectional", hidden_size=size)


def _glu(g: Graph, y: Value, x: Value, axis: int = -1) -> Any:
    a, b = g.node("Split", x, outputs=2, axis=axis, num_outputs=2)
    return g.node("Mul", a, g.node("Sigmoid", b))


def _same(g: Graph, y: Value, x: Value, *others: Any) -> Any:
    return x


Operator = Callable[..., Any]


def _each(write: Callable[[str], Operator], names: dict[str, str]) -> dict[str, Operator]:
    return {name: write(op) for name, op in names.items()}


OPERATORS: dict[str, Operator] = {
    **_each(lambda op: lambda g, y, x: g.node(op, x), {
        "abs": "Abs", "ceil": "Ceil", "exp": "Exp", "floor": "Floor", "log": "Log", "neg": "Neg", "relu": "Relu",
        "reciprocal": "Reciprocal", "sigmoid": "Sigmoid", "sqrt": "Sqrt", "tanh": "Tanh",
        "bitwise_not": "Not", "logical_not": "Not",
    }),
    **_each(lambda op: lambda *x, **more: _binary(op, *x, **more), {
        "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "minimum": "Min", "maximum": "Max", "pow": "Pow",
        "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "eq": "Equal",
        "bitwise_and": "And", "bitwise_or": "Or", "logical_and": "And", "logical_or": "Or",
    }),
    "ne": lambda g, *x: g.node("Not", _binary("Equal", g, *x)),
    "rsub": lambda g, y, a, b: _binary("Sub", g, y, b, a),
    "rsqrt": lambda g, y, x: g.node("Reciprocal", g.node("Sqrt", x)),
    "silu": lambda g, y, x: g.node("Mul", x, g.node("Sigmoid", x)),
    "gelu": lambda g, y, x, approximate="none": g.node("Gelu", x, approximate=approximate),
    "glu": _glu,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "where": lambda g, y, condition, a, b: g.node("Where", condition, g.cast(a, y.dtype), g.cast(b, y.dtype)),
    "masked_fill": lambda g, y, x, mask, value: g.node("Where", mask, g.cast(value, y.dtype), x),
    "_softmax": lambda g, y, x, axis, half: g.node("Softmax", x, axis=axis),
    "sum": lambda *x: _reduce("ReduceSum", *x),
    "mean": lambda *x: _reduce("ReduceMean", *x),
    "native_layer_norm": _layer_norm,
    "native_batch_norm": lambda g, y, *x: [g.node("BatchNormalization", *x[:5], epsilon=x[7])],
    "convolution": _convolution,
    "avg_pool2d": lambda g, y, x, kernel, stride: g.node("AveragePool", x, kernel_shape=kernel, strides=stride),
    "robustdistiller::lstm": _lstm,
    "mm": _product,
    "bmm": _product,
    "addmm": _linear,
    "baddbmm": _baddbmm,
    "view": _view,
    "_unsafe_view": _view,
    "expand": lambda g, y, x, shape: x if y.shape == x.shape else g.node("Expand", x, g.sizes_of(y.shape)),
    "repeat": _repeat,
    "permute": lambda g, y, x, order: g.node("Transpose", x, perm=[k % x.rank for k in order]),
    "transpose": _transpose,
    "t": _transpose,
    "unsqueeze": lambda g, y, x, axis: g.node("Unsqueeze", x, [axis]),
    "squeeze": lambda g, y, x, axis: x if y.rank == x.rank else g.node("Squeeze", x, [axis]),
    "slice": _slice,
    "select": lambda g, y, x, axis, index: g.node("Gather", x, index, axis=axis),
    "unbind": lambda g, y, x, axis=0: [g.node("Gather", x, k, axis=axis) for k in range(x.first.shape[axis])],
    "split": _split,
    "split_with_sizes": _split,
    "cat": lambda g, y, parts, axis=0: g.node("Concat", *(g.cast(x, y.dtype) for x in parts), axis=axis),
    "stack": lambda g, y, parts, axis=0: g.node(
        "Concat", *(g.node("Unsqueeze", x, [axis % y.rank]) for x in parts), axis=axis % y.rank
    ),
    "index_select": lambda g, y, x, axis, index: g.node("Gather", x, index, axis=axis),
    "embedding": lambda g, y, weight, index, *others: g.node("Gather", weight, index, axis=0),
    "gather": lambda g, y, x, axis, index: g.node("GatherElements", x, index, axis=axis),
    "index": _index,
    "index_put": _index_put,
    "constant_pad_nd": _pad,
    "arange": _arange,
    **dict.fromkeys(
        ("ones", "ones_like", "new_ones", "zeros", "zeros_like", "new_zeros", "full", "full_like", "empty", "scalar_tensor"),
        _filled,
    ),
    "_to_copy": lambda g, y, x: g.cast(x, y.dtype),
    **dict.fromkeys(("clone", "alias", "detach", "lift_fresh"), _same),
}  # fmt: skip
