"""From a network to an ONNX graph: it is run on two examples of different sizes, and what both runs compute is written down.

Every ATen operation of a run is noted by PyTorch itself. Both runs are the same sequence of operations; a size that differs
between them is a free axis, and is read from the tensor that it belongs to. What depends on no input is a constant. There is no
algebra on symbolic sizes, which is what other exporters spend most of their time on: a student is written in a second.

A branch that depends on data is taken as the examples take it, so that these must be padded batches, and the graph has to be
compared with the network at other sizes and contents: see parity.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import UserError

# GELU is an operator since opset 20; both are what onnxruntime 1.17, the oldest that the packages allow, can read.
OPSET, IR_VERSION = 20, 9
AXES = {
    "wave": ("batch", "samples"), "lengths": ("batch",), "states": ("batch", "", "frames", ""), "frames": ("batch",),
    "enhanced": ("batch", "samples"),
}  # fmt: skip
"""Names of the free axes of inputs and outputs; of all others, such as probabilities, the first is the batch."""

FAR = 2**62  # the end of a slice that has none
PLACES = ("dtype", "device", "layout", "pin_memory", "memory_format", "non_blocking")  # arguments that say nothing new


@torch.library.custom_op("robustdistiller::lstm", mutates_args=())
def lstm(x: Tensor, weight: Tensor, recurrence: Tensor, bias: Tensor, count: Tensor) -> Tensor:
    """ONNX's bidirectional LSTM in a network that is only traced: x (N, B, D) and valid steps (B,) → (N, 2, B, H)."""
    return x.new_zeros(x.shape[0], 2, x.shape[1], recurrence.shape[-1])


@dataclass(frozen=True)
class Ref:
    """A tensor of a run, by number."""

    number: int


@dataclass
class Call:
    """One operation: its name, the module that it belongs to, arguments with `Ref` for tensors, and what it gave."""

    name: str
    scope: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Ref]


class Tape(TorchDispatchMode):
    """All operations of a run, with every tensor that took part in one."""

    def __init__(self, inputs: Sequence[Tensor]):
        super().__init__()
        self.calls: list[Call] = []
        self.values: list[Tensor] = []
        self.scope = ""
        self._numbers: dict[int, Ref] = {}
        for tensor in inputs:
            self._new(tensor)

    def ref(self, tensor: Tensor) -> Ref:
        """The number of a tensor; one that no operation gave, such as a weight, gets one when it is first used."""
        return self._numbers.get(id(tensor)) or self._new(tensor)

    def _new(self, tensor: Tensor) -> Ref:
        self.values.append(tensor)  # kept, so that no other tensor gets its id
        self._numbers[id(tensor)] = Ref(len(self.values) - 1)
        return self._numbers[id(tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        noted = [_mapped(x, lambda x: self.ref(x) if isinstance(x, Tensor) else x) for x in (args, kwargs or {})]
        name = func._schema.name.partition("::")[2] if func.namespace == "aten" else func._schema.name
        if name.endswith("_") and not name.startswith("_"):  # in place: what the tensor was before is still needed
            if args[0]._is_view():
                raise UserError(f"The network writes into a part of a tensor ({self.scope}), which cannot be exported.")
            self.values[noted[0][0].number] = args[0].clone()
            name = name[:-1]
        out = func(*args, **(kwargs or {}))
        results = [x for x in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(x, Tensor)]
        self.calls.append(Call(name, self.scope, noted[0], noted[1], [self._new(x) for x in results]))
        return out


def record(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tape, list[Ref]]:
    """Run `module`: the tape, and which of its tensors are the outputs."""
    tape = Tape(inputs)
    with torch.no_grad(), _scopes(module, tape), tape:
        outputs = module(*inputs)
    return tape, [tape.ref(x) for x in (outputs if isinstance(outputs, tuple) else (outputs,))]


@contextlib.contextmanager
def _scopes(root: nn.Module, tape: Tape) -> Iterator[None]:
    """Tell the tape in which module of `root` it is, by the shortest of its names."""
    names = {id(root): ""}
    for name, module in root.named_modules(remove_duplicate=False):
        names[id(module)] = min(names.get(id(module), name), name, key=lambda name: name.count("."))
    stack: list[str] = []

    def enter(module: nn.Module, args: Any) -> None:
        stack.append(tape.scope)
        tape.scope = names.get(id(module), tape.scope)

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        tape.scope = stack.pop()

    hooks = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _mapped(x: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(x, (list, tuple)):
        return type(x)(_mapped(y, function) for y in x)
    if isinstance(x, dict):
        return {key: _mapped(y, function) for key, y in x.items()}
    return function(x)


@dataclass(frozen=True)
class Free:
    """A size that differs between the runs: its value in each."""

    first: int
    second: int


def _size(first: int, second: int) -> int | Free:
    return first if first == second else Free(first, second)


@dataclass(eq=False)
class Value:
    """A tensor of the graph.

    first, second: it in both runs; name: once a node gives it; constant: it depends on no input
    whole: what it is a view of, with leading axes of `whole` taken together; written only where it is needed as such
    """

    first: Tensor
    second: Tensor
    name: str = ""
    constant: bool = False
    whole: Value | None = None

    @property
    def shape(self) -> list[int | Free]:
        return [_size(*pair) for pair in zip(self.first.shape, self.second.shape, strict=True)]

    @property
    def rank(self) -> int:
        return self.first.dim()

    @property
    def dtype(self) -> torch.dtype:
        return self.first.dtype


@dataclass
class Graph:
    """What is being written: nodes, constants by name, and the free sizes with the tensors and axes that have them."""

    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    sizes: dict[Free, tuple[Value, int]] = field(default_factory=dict)
    scope: str = ""
    _known: dict[Any, Any] = field(default_factory=dict)

    def node(self, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Write a node of ONNX's operator `op` and return the name of its result, or their names.

        inputs: values, names, numbers and lists of integers (int64), arrays; "" for one that is left out
        """
        import onnx

        names = [self.name(x) for x in inputs]
        while not names[-1]:
            names.pop()
        key = (op, tuple(names), outputs, repr(attributes))
        if key not in self._known:  # computed once
            results = [f"v{len(self.nodes)}" if not k else f"v{len(self.nodes)}.{k}" for k in range(outputs)]
            self.nodes.append(onnx.helper.make_node(op, names, results, name=f"{self.scope}/{op}", **attributes))
            self._known[key] = results if outputs > 1 else results[0]
        return self._known[key]

    def name(self, x: Any) -> str:
        """The name of an input of a node, after what it needs has been written."""
        if isinstance(x, str):
            return x
        if isinstance(x, Value):
            if x.constant:
                x.name = x.name or self._constant(x.first.detach().numpy(), id(x.first))
            elif x.whole is not None and not x.name:
                x.name = self.node("Reshape", x.whole, self.sizes_of([-1, *x.shape[1:]]))
            return x.name
        array = np.asarray(x, None if isinstance(x, (np.ndarray, np.generic)) else np.int64)
        return self._constant(array, (array.dtype.str, array.shape, array.tobytes()))

    def _constant(self, array: Any, key: Any) -> str:
        if key not in self._known:
            self._known[key] = f"c{len(self.constants)}"
            self.constants[self._known[key]] = array
        return self._known[key]  # type: ignore[no-any-return]

    def size(self, x: int | Free) -> Any:
        """A size as a list of one: [integer], or the name of a tensor (1,)."""
        if not isinstance(x, Free):
            return [x]
        if x in self.sizes:
            value, axis = self.sizes[x]
            return self.node("Shape", value, start=axis, end=axis + 1)
        # A few more or less than an axis has, what it lacks to a number, or several times as many.
        more = [x.first - free.first for free in self.sizes if x.first - free.first == x.second - free.second]
        if more:
            least = min(more, key=abs)
            return self.node("Add", self.size(Free(x.first - least, x.second - least)), [least])
        less = [x.first + free.first for free in self.sizes if x.first + free.first == x.second + free.second]
        if less:
            return self.node("Sub", [less[0]], self.size(Free(less[0] - x.first, less[0] - x.second)))
        for free in self.sizes:
            times = _size(x.first // free.first, x.second // free.second)
            if x.first % free.first == x.second % free.second == 0 and (isinstance(times, int) or times in self.sizes):
                return self.node("Mul", self.size(free), self.size(times))
        raise UserError(f"A size of the network cannot be exported ({x.first} and {x.second} in {self.scope}).")

    def note_sizes(self, value: Value) -> None:
        """The free sizes of a new tensor, which are read from there from now on; those of an input stay its."""
        for axis, x in enumerate(value.shape if value.whole is None else ()):
            if isinstance(x, Free) and (x not in self.sizes or self.sizes[x][0].name not in AXES):
                self.sizes[x] = value, axis

    def sizes_of(self, shape: Sequence[int | Free]) -> Any:
        """A shape as a list of integers, or the name of a tensor of them."""
        if not any(isinstance(x, Free) for x in shape):
            return list(shape)
        return self.node("Concat", *(self.size(x) for x in shape), axis=0)

    def cast(self, x: Any, dtype: torch.dtype) -> Any:
        """A tensor or a number in a type; the name of what is already in it is the same."""
        if not isinstance(x, Value):
            return torch.tensor(x, dtype=dtype).numpy()
        if x.constant and x.dtype != dtype:
            return Value(x.first.to(dtype), x.second.to(dtype), constant=True)
        return x if x.dtype == dtype else self.node("Cast", x, to=onnx_type(dtype))


def onnx_type(dtype: torch.dtype) -> int:
    import onnx

    return int(onnx.helper.np_dtype_to_tensor_dtype(torch.zeros((), dtype=dtype).numpy().dtype))


def trace(module: nn.Module, inputs: dict[str, tuple[Tensor, Tensor]], outputs: Sequence[str]) -> Any:
    """Trace `module`, in evaluation mode.

    Args:
        module: Given the inputs in order, it returns a tensor or a tuple of them.
        inputs: By name, an example and another one, which has other sizes on the axes that are to be free.
        outputs: Names of what it returns.

    Returns:
        An `onnx.ModelProto` of one main domain.

    Raises:
        UserError: A package is missing, or the network computes something that has no counterpart in ONNX here.
    """
    graph = Graph()
    tapes, results = zip(*(record(module.eval(), [pair[k] for pair in inputs.values()]) for k in (0, 1)), strict=True)
    calls = list(zip(*(tape.calls for tape in tapes), strict=False))
    if any(one.name != other.name for one, other in calls) or results[0] != results[1]:
        raise UserError("The network computes other things at other sizes, and cannot be exported.")
    values = [Value(a, b, constant=True) for a, b in zip(*(tape.values for tape in tapes), strict=True)]
    for name, value in zip(inputs, values, strict=False):
        value.name, value.constant = name, False
        graph.note_sizes(value)
    given = {name: (value.shape, value.dtype) for name, value in zip(inputs, values, strict=False)}
    for one, other in _needed(calls, results[0]):
        args, kwargs = _paired((one.args, one.kwargs), (other.args, other.kwargs), values)
        if _constant((args, kwargs)):
            continue
        for ref in one.results:
            values[ref.number].constant = False
        graph.scope = one.scope
        _write(graph, one, args, kwargs, values)
    return _model(graph, given, {name: values[ref.number] for name, ref in zip(outputs, results[0], strict=True)})


def _needed(calls: Sequence[tuple[Call, Call]], results: Sequence[Ref]) -> list[tuple[Call, Call]]:
    """The calls that the results depend on."""
    wanted, kept = set(results), []
    for pair in reversed(calls):
        if wanted & set(pair[0].results):
            _mapped((pair[0].args, pair[0].kwargs), lambda x: wanted.add(x) if isinstance(x, Ref) else None)
            kept.append(pair)
    return kept[::-1]


def _paired(one: Any, other: Any, values: Sequence[Value]) -> Any:
    """Arguments of both runs as one: tensors as values, numbers that differ as free sizes."""
    if isinstance(one, (list, tuple)):
        return [_paired(a, b, values) for a, b in zip(one, other, strict=True)]
    if isinstance(one, dict):
        return {key: _paired(one[key], other[key], values) for key in one}
    if isinstance(one, Ref):
        return values[one.number]
    return _size(one, other) if isinstance(one, int) and not isinstance(one, bool) else one


def _constant(x: Any) -> bool:
    if isinstance(x, (list, tuple, dict)):
        return all(map(_constant, x.values() if isinstance(x, dict) else x))
    return x.constant if isinstance(x, Value) else not isinstance(x, Free)


def _write(graph: Graph, call: Call, args: Any, kwargs: Any, values: list[Value]) -> None:
    """Write one operation; what it gave gets names, or becomes what it is equal to."""
    from .aten import OPERATORS

    kwargs = {key: value for key, value in kwargs.items() if key not in PLACES}
    try:
        told = OPERATORS[call.name](graph, values[call.results[0].number], *args, **kwargs)
    except (KeyError, TypeError, NotImplementedError) as error:
        raise UserError(f"The network computes {call.name} in {call.scope}, which cannot be exported.") from error
    for ref, result in zip(call.results, told if isinstance(told, list) else [told], strict=False):
        if isinstance(result, Value):
            values[ref.number] = result
        else:
            values[ref.number].name = result
            graph.note_sizes(values[ref.number])


def _model(graph: Graph, inputs: dict[str, Any], outputs: dict[str, Value]) -> Any:
    """The nodes that lead to `outputs` as a model; axes are named after what they count."""
    import onnx
    from onnx import helper, numpy_helper

    graph.scope = ""
    results = {name: graph.node("Identity", value) for name, value in outputs.items()}  # a name may be one only once
    wanted, nodes, counts = set(results.values()), [], dict[str, int]()
    for node in reversed(graph.nodes):
        if wanted & set(node.output):
            wanted.update(node.input)
            nodes.append(node)
    nodes.reverse()
    renamed = {old: new for new, old in results.items()}
    for node in nodes:
        counts[node.name] = counts.get(node.name, 0) + 1
        node.name += f".{counts[node.name]}" if counts[node.name] > 1 else ""
        node.output[:] = [renamed.get(name, name) for name in node.output]

    def information(name: str, shape: Sequence[int | Free], dtype: torch.dtype) -> Any:
        axes = (*AXES.get(name, ("batch",)), *(f"axis {k}" for k in range(len(shape))))
        told = [axes[k] if isinstance(n, Free) else n for k, n in enumerate(shape)]
        return helper.make_tensor_value_info(name, onnx_type(dtype), told)

    made = helper.make_graph(
        nodes,
        "main",
        [information(name, shape, dtype) for name, (shape, dtype) in inputs.items()],
        [information(name, value.shape, value.dtype) for name, value in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in graph.constants.items() if name in wanted],
    )
    model = helper.make_model(made, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])
    onnx.checker.check_model(model)
    return model
