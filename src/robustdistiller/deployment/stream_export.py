"""``encoder.stream.onnx``: one step of a streaming student, proved equal to the chunk-masked offline pass before it is written.

What the file says of itself under `stream`: chunk and look_ahead in frames of 20 ms, left (frames of attention before the
chunk), latency in seconds, silence (zeros before the first sample), start (the first frame's number), and the name, shape and
type of every tensor of the state, in the order of the graph's inputs behind `wave` and `end`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import UserError
from ..evaluation.false_alarms import frame_scores
from ..models.frames import GRID
from ..models.streaming import ENDLESS
from ..models.student import Student, load_student
from ..runtime.container import Description
from ..runtime.detection import BACKGROUND, Detector
from ..runtime.stream import Stream
from .stream_graph import DetectorGraph, StreamGraph
from .task_head import TaskHead, find_head
from .tracing import trace

Waves = Sequence[NDArray[np.float32]]
CUTS = (160, 1, 4000, 777, 16_000)  # samples of a chunk, in turn: nothing may depend on them
CALIBRATION_STEPS = 256


def stream_description(network: StreamGraph) -> dict[str, Any]:
    """What a driver needs to know beside the graph; plain values."""
    c = network.chunking
    kinds = {torch.int64: "int64"}
    values = zip(network.state_names, network.initial_state(), strict=True)
    state = [[name, list(value.shape), kinds.get(value.dtype, "float32")] for name, value in values]
    return {
        "chunk": c.chunk, "look_ahead": c.look_ahead, "left": c.left, "latency": c.latency, "silence": network.silence,
        "start": network.start, "state": state,
    }  # fmt: skip


def trace_stream(network: StreamGraph) -> Any:
    """The step as an `onnx.ModelProto` whose shapes are all fixed."""
    wave = torch.zeros(1, network.chunking.chunk * GRID.stride)
    state = zip(network.state_names, network.initial_state(), strict=True)
    inputs = {"wave": wave, "end": torch.tensor([ENDLESS]), **dict(state)}
    outputs = [network.output, *(f"next {name}" for name in network.state_names)]
    return trace(network, {name: (value, value) for name, value in inputs.items()}, outputs)


class SessionEngine:
    """An ONNX Runtime session, or a network in PyTorch, as the engine of a `Stream`; `fed` keeps its inputs if it is a list."""

    def __init__(self, model: Any, fed: list[dict[str, Any]] | None = None):
        self.model, self.fed = model, fed

    def run(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        if self.fed is not None:
            self.fed.append({name: value.copy() for name, value in feeds.items()})
        if isinstance(self.model, torch.nn.Module):
            dtype = next(self.model.parameters()).dtype
            given = [torch.from_numpy(np.array(value)) for value in feeds.values()]
            with torch.no_grad():
                made = self.model(*(x.to(dtype) if x.is_floating_point() else x for x in given))
            return [x.numpy() for x in made]
        return self.model.run(None, feeds)  # type: ignore[no-any-return]


def open_stream(description: Description, model: Any, fed: list[dict[str, Any]] | None = None) -> Stream:
    """A stream of a model that is no file: a network in PyTorch, or a session."""
    stream = Stream.__new__(Stream)
    stream._open(description, SessionEngine(model, fed))
    return stream


def open_detector(student: str, head_file: str, threshold: float, smoothing: float, refractory: float) -> Detector:
    """A streaming student at its operating point (``folder@160+160``) with a head of the benchmark, in PyTorch.

    Raises `UserError` for a student without an operating point, or a head that was trained on another model.
    """
    loaded = load_student(student)
    if loaded.streaming is None:
        raise UserError(f"{student} was not trained to stream: give a streaming student, such as mini-stream@160+160.")
    if loaded.chunking is None:
        raise UserError(f"Name the operating point as well: {student}@160+160 for chunks and a look-ahead of 160 ms.")
    head = find_head(head_file, student, loaded)
    network = DetectorGraph(loaded, loaded.chunking, head).eval()
    detector = Detector.__new__(Detector)
    detector._open(replace(StreamJob(network, loaded, head).description, labels=head.labels), SessionEngine(network))
    detector._configure(threshold, smoothing, refractory, BACKGROUND)
    return detector


def streamed(stream: Stream, wave: NDArray[np.float32], cuts: Sequence[int] = CUTS) -> NDArray[np.float32]:
    """The states (S, F, D) of a recording (T,) that is pushed in pieces of `cuts` samples, over and over."""
    parts, at, turn = [], 0, 0
    while at < len(wave):
        size = cuts[turn % len(cuts)]
        parts.append(stream.push(wave[at : at + size]).states)
        at, turn = at + size, turn + 1
    parts.append(stream.close().states)
    return np.concatenate(parts, 1)


class StreamSession:
    """A stream as a session of whole recordings: each is pushed alone, in pieces of many sizes."""

    def __init__(self, description: Description, model: Any):
        self.description, self.model = description, model

    def run(self, names: None, feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """wave (B, T) with lengths (B,) → the states (B, S, F, D) alone, zeros beyond the end of each."""
        waves = [wave[:size] for wave, size in zip(feed["wave"], feed["lengths"], strict=True)]
        made = [streamed(open_stream(self.description, self.model), wave) for wave in waves]
        return [_padded(made).numpy()]


def _padded(states: Sequence[NDArray[Any]]) -> Tensor:
    """States (S, F, D) of several recordings, (B, S, F, D)."""
    rows = [torch.from_numpy(one).transpose(0, 1) for one in states]
    return pad_sequence(rows, batch_first=True).transpose(1, 2)


class StreamJob:
    """How a step is checked and calibrated.

    network: what was traced; student: the reference, at its operating point; head: of a detector, else None
    """

    def __init__(self, network: StreamGraph, student: Student, head: TaskHead | None = None):
        self.student, self.head = student, head
        self.description = Description(
            kind="stream" if head is None else "detector", precision="fp32", student="", sampling_rate=16_000,
            stride=GRID.stride, field=GRID.field, normalize=False, states=network.names if head is None else (network.output,),
            hidden=network.width, stream=stream_description(network),
        )  # fmt: skip

    def reference(self, wave: Tensor) -> NDArray[np.float64]:
        """What the stream must give for (T,), by the chunk-masked offline pass: states (S, F, D), or scores (1, F, classes)."""
        wanted = len(self.head.states) if self.head else len(self.description.states)
        states = self.student.states(wave[None].double(), predictions=wanted > len(self.student.states_names))[0]
        return (states[0] if self.head is None else frame_scores(self.head.head, states)[None]).numpy()  # type: ignore[no-any-return]

    def references(self, wave: Tensor, lengths: Tensor) -> list[Tensor]:
        """The same for each of a batch (B, T), as `StreamSession` gives it."""
        return [_padded([self.reference(row[:size]) for row, size in zip(wave, lengths.tolist(), strict=True)])]

    def steps(self, model: Any, waves: Waves) -> list[dict[str, Any]]:
        """The inputs of some of the steps of these recordings, to set ranges with."""
        fed: list[dict[str, Any]] = []
        for wave in waves:
            streamed(open_stream(self.description, model, fed), wave)
        return fed[:: max(1, len(fed) // CALIBRATION_STEPS)]
