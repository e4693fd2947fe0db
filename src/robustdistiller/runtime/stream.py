"""A streaming student at work: samples in, frames out, exactly as offline, from a state of constant size.

    from robustdistiller.runtime import Stream

    stream = Stream("exported/encoder.stream.onnx")      # stream.latency in seconds
    for chunk in microphone:                             # any number of samples at a time
        features = stream.push(chunk)                    # states (S, F, D) and times (F,); F may be 0
    features = stream.close()                            # what was still waiting for its look-ahead

The file holds one step: a chunk of samples, and the tensors of the state before and after it (docs/streaming.md).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AudioError, UserError
from .container import Description
from .engine import Engine, open_graph
from .models import Features
from .sound import check_wave

ENDLESS = 1 << 62  # frames of a stream that has not ended
JUMP_SECONDS = 0.1  # of the clock between two chunks that is not believed

State = dict[str, NDArray[Any]]


class Stream:
    """A stream of one microphone. `push` takes the next samples, `close` ends it; the state changes only where they succeed.

    Args:
        path: A file ``*.stream.onnx`` of `robustdistiller export STUDENT@160+160`.
        threads: None for as many as there are cores.
        rate: What the source delivers, in samples a second.
        state: Go on from this state, as `state` of another stream of the same file gave it.

    Raises:
        UserError: For another file, another rate, or a state of another file.
    """

    kind = "stream"

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int | None = None,
        rate: int = 16_000,
        verify: bool = True,
        state: State | None = None,
    ):
        description, engine = open_graph(path, self.kind, threads=threads, verify=verify)
        self._open(description, engine, state)
        if rate != self.rate:
            raise AudioError(
                f"The source has {rate} samples a second and the model needs {self.rate}: convert it first.", "rate"
            )

    def _open(self, description: Description, engine: Engine, state: State | None = None) -> None:
        self.description, self._engine = description, engine
        self.rate, self.names = description.sampling_rate, description.states
        about = description.stream
        self.chunk, self.look_ahead, self.latency = about["chunk"], about["look_ahead"], about["latency"]
        self._step = self.chunk * description.stride
        self._shapes = {name: (tuple(shape), np.dtype(kind)) for name, shape, kind in about["state"]}
        self._file = json.dumps([description.weights, description.precision, about], sort_keys=True)
        self._closed = False
        self._clock: float | None = None
        self._state: State = {name: np.zeros(shape, kind) for name, (shape, kind) in self._shapes.items()}
        self._state["position"][:] = about["start"]
        self._samples = 0  # of the audio so far
        # Samples that no step has taken yet, behind the silence before the audio.
        self._waiting = np.zeros(self._step, np.float32)
        self._filled = int(about["silence"]) % self._step
        if about["silence"] >= self._step:
            raise UserError("The description of this stream cannot be understood: export the student again.")
        if state is not None:
            self._restore(state)

    @property
    def state(self) -> State:
        """Everything that another stream of the same file needs to go on here; plain arrays, for `numpy.savez`."""
        self._check_open()
        return {
            **{name: value.copy() for name, value in self._state.items()},
            "waiting": self._waiting[: self._filled].copy(),
            "samples": np.array(self._samples, np.int64),
            "model": np.array(self._file),
        }

    def _restore(self, state: State) -> None:
        known = isinstance(state, Mapping) and set(state) == set(self.state)
        if not known or str(state["model"]) != self._file:
            raise UserError("This state is of another file or version: start a new stream.")
        given = {name: np.asarray(value) for name, value in state.items()}
        samples = given["samples"].item() if given["samples"].ndim == 0 else -1
        samples = samples if isinstance(samples, int) else -1
        # The samples so far tell how many steps were taken, and how many samples wait.
        steps, filled = divmod(int(self.description.stream["silence"]) + samples, self._step)
        shapes = {**self._shapes, "waiting": ((filled,), np.dtype(np.float32))}
        fits = all(
            given[name].shape == shape and given[name].dtype == kind and np.isfinite(given[name]).all()
            for name, (shape, kind) in shapes.items()
        )
        start = int(self._state["position"][0])
        if not fits or samples < 0 or int(given["position"][0]) != start + self.chunk * steps:
            raise UserError("This state is damaged: start a new stream.")
        self._state = {name: given[name].copy() for name in self._shapes}
        self._waiting[:filled], self._filled, self._samples = given["waiting"], filled, samples

    def push(self, chunk: Any, time: float | None = None) -> Features:
        """Hear the next samples and give the frames that they complete, possibly none.

        Args:
            chunk: Floats (T,) of any length but 0.
            time: When its first sample was taken, in seconds of any clock; a gap to the chunk before is refused.

        Raises:
            AudioError: For what is no audio, a stream that is closed, or samples that were lost; the state stays as it was.
        """
        self._check_open()
        chunk = check_wave(chunk, 1, "The chunk")
        if time is not None:
            if not isinstance(time, int | float | np.number) or not np.isfinite(time):
                raise AudioError(f"The time of a chunk is {time!r:.20}: give seconds of a clock.", "clock")
            if self._clock is not None and not abs(time - self._clock) <= JUMP_SECONDS:
                raise AudioError(
                    f"The chunk begins at {time:.2f} s and was due at {self._clock:.2f} s: samples are missing or came "
                    "twice; push silence for what was lost, or open a new stream.",
                    "clock",
                )
        before = self._state, self._waiting.copy(), self._filled
        try:
            features = self._joined(list(self._steps(chunk, ENDLESS)))
        except BaseException:  # Ctrl-C among them
            self._state, self._waiting, self._filled = before
            raise
        self._samples += len(chunk)
        begun = self._clock if time is None else time
        self._clock = None if begun is None else begun + len(chunk) / self.rate
        return features

    def close(self) -> Features:
        """Say that the audio ends here, and give the frames that were waiting for their look-ahead."""
        self._check_open()
        self._closed = True
        d = self.description
        frames = max(0, (self._samples - d.field) // d.stride + 1)
        made = []
        while self._next < frames:
            made += list(self._steps(np.zeros(self._step - self._filled, np.float32), frames))
        return self._joined(made)

    def run(self, chunks: Iterable[Any]) -> Iterator[Features]:
        """All of `chunks`, then the end; only what holds frames."""
        for chunk in chunks:
            if (features := self.push(chunk)).times.size:
                yield features
        if (features := self.close()).times.size:
            yield features

    @property
    def _next(self) -> int:
        """The frame that the next step gives first."""
        return int(self._state["position"][0]) - int(self.look_ahead)

    def _check_open(self) -> None:
        if self._closed:
            raise AudioError("This stream is closed: open another one.", "closed")

    def _steps(self, samples: NDArray[np.float32], end: int) -> Iterator[tuple[NDArray[np.float32], int]]:
        """Every step that `samples` complete: its states (S, F, D) without frames that do not exist, and the first's number."""
        at = 0
        while at < len(samples):
            taken = min(self._step - self._filled, len(samples) - at)
            self._waiting[self._filled : self._filled + taken] = samples[at : at + taken]
            self._filled, at = self._filled + taken, at + taken
            if self._filled == self._step:
                first = self._next
                feeds = {"wave": self._waiting[None], "end": np.array([end]), **self._state}
                states, *state = self._engine.run(feeds)
                if not all(np.isfinite(value).all() for value in (states, *state)):
                    raise AudioError("The chunk is too loud to compute with: give floats in ±1.", "level")
                self._state, self._filled = dict(zip(self._shapes, state, strict=True)), 0
                inner = slice(max(0, -first), max(0, min(self.chunk, end - first)))
                if inner.start < inner.stop:
                    yield states[0][:, inner], first + inner.start

    def _joined(self, parts: list[tuple[NDArray[np.float32], int]]) -> Features:
        d = self.description
        if not parts:
            return Features(np.zeros((len(d.states), 0, d.hidden), np.float32), np.zeros(0))
        states = np.concatenate([part for part, _ in parts], 1)
        return Features(states, ((parts[0][1] + np.arange(states.shape[1])) * d.stride + d.field / 2) / self.rate)
