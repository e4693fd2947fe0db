"""StoredFeatures, extracted once per model and condition, streamed to disk, and read by every head.

A stream is filled shard by shard; a shard is written whole or not at all, so an interrupted extraction goes on where it
stopped and yields the same bytes. When the last shard is there they are joined into two NumPy files, in the order of the
utterances: `features.npy` (ΣF, S, D) and `frames.npy` (N,). Utterance-level tasks need one row per utterance, the mean over
its valid frames, in float32; CTC needs every frame, in float16. Nothing here holds more than a shard in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from ..errors import UserError, explained
from ..files import digest, replacing, write_json

FORMAT = 2  # raise it when the same key would give other numbers: other models' states, or other means of them


class FeatureModel(Protocol):
    """What the benchmark asks of a model: its states for a padded batch of waveforms."""

    name: str
    digest: str  # of weights and input conventions
    num_parameters: int
    state_names: tuple[str, ...]

    def states(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, T) with valid `lengths` (B,) samples → states (B, S, F, D) and valid frames (B,)."""
        ...


@dataclass(frozen=True)
class Plan:
    """How N utterances are batched: shards of batches of indices, longest first; a function of their lengths alone."""

    shards: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def batches(self) -> list[tuple[int, ...]]:
        return [batch for shard in self.shards for batch in shard]

    @property
    def order(self) -> list[int]:
        """Utterance indices in the order in which they are written."""
        return [index for batch in self.batches for index in batch]


def make_plan(seconds: Sequence[float], batch_seconds: float, shard_seconds: float = 240.0) -> Plan:
    """Batches of similar length with at most `batch_seconds` of audio, padding included."""
    order = sorted(range(len(seconds)), key=lambda i: (-seconds[i], i))
    shards: list[tuple[tuple[int, ...], ...]] = []
    shard: list[tuple[int, ...]] = []
    batch: list[int] = []
    filled = 0.0
    for index in order:
        if batch and (len(batch) + 1) * seconds[batch[0]] > batch_seconds:
            shard.append(tuple(batch))
            filled += len(batch) * seconds[batch[0]]
            batch = []
            if filled >= shard_seconds:
                shards.append(tuple(shard))
                shard, filled = [], 0.0
        batch.append(index)
    if batch:
        shard.append(tuple(batch))
    if shard:
        shards.append(tuple(shard))
    return Plan(tuple(shards))


@dataclass(frozen=True)
class StoredFeatures:
    """A finished stream: `rows` (ΣF, S, D) mapped from disk and `frames` (N,), in the order of the utterances."""

    rows: NDArray[Any]
    frames: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each utterance starts, (N + 1,)."""
        return np.concatenate([[0], np.cumsum(self.frames)])

    def chunks(self, size: int = 1024) -> Iterator[tuple[slice, Tensor]]:
        """The rows, `size` at a time, as float32."""
        for start in range(0, len(self.rows), size):
            part = slice(start, min(start + size, len(self.rows)))
            yield part, torch.from_numpy(np.array(self.rows[part], dtype=np.float32))


class FeatureStream:
    """One stream of features on disk, named by the digest of everything that it depends on."""

    def __init__(self, root: Path, key: dict[str, Any], about: str = ""):
        self.key, self.about = {**key, "format": FORMAT}, about
        self.folder = root / digest(self.key)

    @property
    def finished(self) -> bool:
        return (self.folder / "frames.npy").is_file()

    def _shard(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.safetensors"

    def has(self, number: int) -> bool:
        return self.finished or self._shard(number).is_file()

    def write(self, number: int, rows: NDArray[Any], frames: NDArray[np.int64]) -> None:
        """Store shard `number`: rows (ΣF, S, D) and frames (n,) of its utterances in plan order."""
        if number == 0:
            write_json(self.folder / "key.json", {"about": self.about, **self.key})
        with replacing(self._shard(number)) as temporary:
            save_file({"rows": np.ascontiguousarray(rows), "frames": frames}, temporary)

    def finish(self, plan: Plan) -> None:
        """Join all shards into the two files, in utterance order, and remove them."""
        if self.finished:
            return
        order = plan.order
        frames = np.zeros(len(order), dtype=np.int64)
        at = 0
        shape: tuple[int, ...] = ()
        dtype: Any = np.float32
        for number in range(len(plan.shards)):
            shard = self._read(number)
            frames[order[at : at + len(shard["frames"])]] = shard["frames"]
            at += len(shard["frames"])
            shape, dtype = shard["rows"].shape[1:], shard["rows"].dtype
        starts = np.concatenate([[0], np.cumsum(frames)])
        with replacing(self.folder / "features.npy") as temporary:
            joined = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=(int(starts[-1]), *shape))
            at = 0
            for number in range(len(plan.shards)):
                shard = self._read(number)
                row = 0
                for count in shard["frames"]:
                    joined[starts[order[at]] : starts[order[at]] + count] = shard["rows"][row : row + count]
                    row += count
                    at += 1
            joined.flush()
            del joined
        with replacing(self.folder / "frames.npy") as temporary:
            np.save(temporary, frames)
        for number in range(len(plan.shards)):
            self._shard(number).unlink(missing_ok=True)

    def _read(self, number: int) -> dict[str, NDArray[Any]]:
        file = self._shard(number)
        with explained(f"The feature file {file} is damaged", "delete it and run the same command again."):
            return load_file(file)

    def open(self) -> StoredFeatures:
        """The finished stream, mapped, not read."""
        try:
            rows = np.load(self.folder / "features.npy", mmap_mode="r", allow_pickle=False)
            return StoredFeatures(rows, np.load(self.folder / "frames.npy", allow_pickle=False))
        except (ValueError, OSError, EOFError) as error:  # NumPy's words are advice to load it unsafely
            advice = "delete that folder and run the same command again"
            raise UserError(f"The features in {self.folder} are damaged: {advice}.") from error


Render = Callable[[Sequence[int]], tuple[Tensor, Tensor]]
"""Indices of utterances → contaminated waveforms (B, T) and their valid lengths (B,) in samples."""

Watch = Callable[[Sequence[int], Tensor, Tensor], None]
"""Indices of utterances, states (B, S, F, D) and valid frames (B,)."""


def extract(
    models: Sequence[FeatureModel],
    streams: Sequence[FeatureStream],
    plan: Plan,
    render: Render,
    pooled: bool,
    device: torch.device | str = "cpu",
    tick: Callable[[], None] | None = None,
    watch: Mapping[str, Watch] = {},
) -> None:
    """Fill one stream per model; every model gets the same rendered samples, and only missing shards are computed.

    pooled: mean over valid frames, else all of them; tick: called once a shard; watch: who else wants the states of every
    batch, by the name of the model.
    """
    for number, shard in enumerate(plan.shards):
        missing = [k for k, stream in enumerate(streams) if not stream.has(number)]
        wanted = [k for k, model in enumerate(models) if k in missing or model.name in watch]
        rows: dict[int, list[Tensor]] = {k: [] for k in missing}
        frames: dict[int, list[Tensor]] = {k: [] for k in missing}
        for batch in shard if wanted else ():
            wave, lengths = render(batch)
            wave, lengths = wave.to(device), lengths.to(device)
            for k in wanted:
                states = models[k].states(wave, lengths)
                if models[k].name in watch:
                    watch[models[k].name](batch, *states)
                if k in missing:
                    reduced, count = reduce_states(*states, pooled)
                    rows[k].append(reduced.cpu())
                    frames[k].append(count.cpu())
        for k in missing:
            streams[k].write(number, torch.cat(rows[k]).numpy(), torch.cat(frames[k]).numpy().astype(np.int64))
        if tick:
            tick()
    for stream in streams:
        stream.finish(plan)


def reduce_states(states: Tensor, frames: Tensor, pooled: bool) -> tuple[Tensor, Tensor]:
    """States (B, S, F, D) with valid `frames` (B,) → rows (ΣF', S, D) and rows per utterance (B,)."""
    if pooled:
        valid = torch.arange(states.shape[2], device=states.device) < frames[:, None]  # (B, F)
        total = (states.float() * valid[:, None, :, None]).sum(2)
        return total / frames[:, None, None], torch.ones_like(frames)
    kept = [state[:, :count].transpose(0, 1) for state, count in zip(states, frames.tolist(), strict=True)]
    return torch.cat(kept).clamp(-65504, 65504).half(), frames


def require_space(folder: Path, needed: float) -> None:
    """Refuse to start when the features of all streams (`needed` bytes) would not fit on the disk of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise UserError(
            f"The features need about {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free: choose another "
            "--out, fewer conditions, or a limit in the task file."
        )
