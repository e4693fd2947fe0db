"""From recordings to batches: crops read and noise fetched in loader workers, scenes rendered later on the device."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ..acoustics.environment import Environment
from ..acoustics.scene import Scene
from ..audio.batching import Crop, LengthBucketSampler
from ..audio.io import SAMPLE_RATE
from ..audio.manifest import Recording
from ..audio.rir import RIR
from ..audio.shards import Member, Shard, members
from ..audio.streams import ShardCrop, ShardSampler, spooled
from ..config import Recipe
from ..errors import AudioError, UserError
from ..models.frames import GRID
from ..randomness import generator, integer
from .materials import Materials
from .target_cache import audio_key
from .worker_activity import WorkerActivity

PREFETCH = 4  # microbatches that each worker holds ready


@dataclass
class Batch:
    """A microbatch.

    Attributes:
        clean: (B, T) speech.
        lengths: (B,) valid samples, on the host.
        noise: (B, T) before it is scaled, where there is any.
        noisy: (B, T) contaminated speech, once it was rendered.
        scenes: what happens to each utterance.
        responses: room responses of the scenes, by id.
        seconds: valid speech in all.
        replaced: recordings that could not be read, as rows.
        keys: digests of the clean crops, where there is a target cache to ask.
        planned_frames: valid frames of the global batch that this is a part of.
    """

    clean: Tensor
    lengths: Tensor
    noise: Tensor | None
    scenes: list[Scene]
    seconds: float
    replaced: list[dict[str, Any]] = field(default_factory=list)
    keys: list[bytes] | None = None
    planned_frames: int = 0
    noisy: Tensor | None = None
    responses: dict[str, RIR] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The batch with its sound on `device`; lengths stay on the host, where they are read."""
        noise = None if self.noise is None else self.noise.to(device, non_blocking=True)
        return replace(self, clean=self.clean.to(device, non_blocking=True), noise=noise)

    def contaminated(self, environment: Environment) -> Tensor:
        """(B, T) what `environment` makes of the clean speech."""
        return environment.render(self.clean, self.lengths, self.noise, self.scenes, self.responses)

    def pin_memory(self) -> Batch:
        """For the loader: page-locked copies, which a GPU reads without waiting."""
        noise = None if self.noise is None else self.noise.pin_memory()
        return replace(self, clean=self.clean.pin_memory(), noise=noise)


@dataclass
class Parcel:
    """A `Batch` as a worker sends it: all in shared memory, so that the message fits into a pipe at once.

    Of a longer one a worker that is killed may leave a part there, and the main process would wait for the rest for ever.
    """

    clean: Tensor
    noise: Tensor | None
    rest: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Parcel:
        rest = pickle.dumps(replace(batch, clean=torch.empty(0), noise=None))
        return cls(batch.clean, batch.noise, torch.frombuffer(bytearray(rest), dtype=torch.uint8))

    def open(self) -> Batch:
        """Comes from a process of our own, as all that a loader sends pickled."""
        return replace(pickle.loads(self.rest.numpy().tobytes()), clean=self.clean, noise=self.noise)

    def pin_memory(self) -> Batch:
        """For the loader: opened, in page-locked memory."""
        return self.open().pin_memory()


Item = tuple[np.ndarray, Scene, "np.ndarray | None", dict[str, RIR], list[dict[str, Any]]]
"""The clean samples of a crop, its scene, raw noise and room responses, and rows about recordings that it had to replace."""


class CropDataset(Dataset[Any]):
    """(step, crop) → an `Item`, a pure function of its key; in a worker, a mistake of the user as a value.

    Recordings go by a number; a subclass may number and find them in another way.
    """

    def __init__(self, recordings: Sequence[Recording], environment: Environment):
        self.recordings = recordings
        self.environment = environment
        self.activity = WorkerActivity()

    def __getitem__(self, key: tuple[int, Crop]) -> Item | UserError:
        try:
            return self._read(*key)
        except UserError as error:
            if get_worker_info() is None:
                raise
            return error  # raised there, it would come back with a page of traceback for a message
        finally:
            self.activity.reading(None)

    def number(self, crop: Crop) -> int:
        """The number of the recording that a crop is of."""
        return crop.index

    def recording(self, number: int) -> Recording:
        """The recording with a number."""
        return self.recordings[number]

    def other(self, number: int, draw: int) -> int:
        """The number of another recording, by a large random `draw`."""
        return draw % len(self.recordings)

    def name(self, number: int) -> str:
        """What a message calls a recording."""
        return self.recording(number).path

    def _read(self, step: int, crop: Crop) -> Item:
        number, replaced = self.number(crop), []
        while True:
            recording = self.recording(number)
            self.activity.reading(number)
            try:
                wave = load_crop(recording, crop)
                break
            except AudioError as error:
                replaced.append({"id": recording.id, "path": recording.path, "reason": error.reason, "step": step})
                if len(replaced) >= 20:
                    raise UserError(
                        f"Twenty recordings in a row cannot be read any more (the last: {recording.path}): is the disk with "
                        "the speech still there? Then go on with --resume."
                    ) from error
                number = self.other(number, integer("replacement", recording.id, crop.epoch, len(replaced)))
        self.activity.reading(number, noise=True)
        scene = self.environment.draw(recording.id, len(wave) / SAMPLE_RATE, crop.epoch, step, recording.speaker)
        lost = [noise.note for noise in scene.noises if noise.replaced]
        replaced += [{"id": recording.id, "reason": f"noise: {note}", "step": step} for note in lost]
        noise, responses = self.environment.fetch(scene, len(wave)), self.environment.responses(scene)
        return wave, scene, noise, responses, replaced


class ShardDataset(CropDataset):
    """Crops of the shards that lie in a `Spool`; a number is that of the shard and the place in it."""

    _PLACES = 1 << 32

    def __init__(self, shards: Sequence[Shard], folder: Path, environment: Environment):
        super().__init__((), environment)
        self.shards, self.folder = shards, folder
        self._open: OrderedDict[tuple[int, int], list[Member]] = OrderedDict()

    def number(self, crop: Crop) -> int:
        assert isinstance(crop, ShardCrop)
        return crop.shard * self._PLACES + crop.index

    def recording(self, number: int) -> Recording:
        shard, place = divmod(number, self._PLACES)
        members = self._members(shard)
        return members[place % len(members)]  # of a shard that was replaced there may be fewer

    def other(self, number: int, draw: int) -> int:
        return number - number % self._PLACES + draw % self._PLACES

    def name(self, number: int) -> str:
        return f"{self.shards[number // self._PLACES].path}::{number % self._PLACES:06d}"

    def _members(self, shard: int) -> list[Member]:
        file = spooled(self.folder, shard)
        try:
            key = (shard, file.stat().st_mtime_ns)
        except OSError as error:
            raise UserError(f"{file} was removed: go on with --resume.") from error
        if key not in self._open:
            self._open[key] = members(file, self.shards[shard])
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]


_OPEN_SHARDS = 64  # whose recordings a worker knows: half a megabyte each at most


def load_crop(recording: Recording, crop: Crop) -> np.ndarray:
    """Read a crop of a recording: (T,) float32, at most crop.samples long."""
    wave = recording.load(crop.start / SAMPLE_RATE, crop.samples / SAMPLE_RATE)
    if len(wave) < GRID.field:
        raise AudioError(f"{recording.path} is shorter than one frame.", "too-short")
    return wave


def some_speech(materials: Materials, seed: int, clips: int = 64, seconds: float = 3.0) -> Iterator[Tensor]:
    """Clean clips (T,) of at most `seconds` from all over the training speech (from the first of its shards); those that cannot
    be read are passed over. Nothing is read before the first is asked for."""
    recordings: Sequence[Recording] = materials.train
    if materials.spool is not None:
        recordings = members(materials.spool.hold(materials.shards[0]), materials.shards[0])
    order = generator(seed, "some speech").permutation(len(recordings))
    for index in order[:clips]:
        with suppress(AudioError):
            crop = Crop(int(index), 0, 0, int(seconds * SAMPLE_RATE))
            yield torch.from_numpy(load_crop(recordings[crop.index], crop))


def collate(items: Sequence[Item], keyed: bool = False) -> Batch:
    """Pad crops of nearly equal length with zeros; `keyed`: with the digests that a target cache asks for."""
    waves, scenes, noises, responses, replaced = zip(*items, strict=True)
    size = max(len(wave) for wave in waves)

    def stack(rows: Sequence[np.ndarray | None]) -> Tensor:
        out = torch.empty(0)
        if get_worker_info() is None:
            out = out.resize_(len(rows), size)
        else:  # written where the main process will read it: sent as it is, it would be copied there
            shared = torch.UntypedStorage._new_shared(4 * len(rows) * size)  # type: ignore[no-untyped-call]
            out = out.set_(shared).reshape(len(rows), size)
        for row, values in zip(out.numpy(), rows, strict=True):
            count = 0 if values is None else len(values)
            row[:count], row[count:] = values if count else 0, 0
        return out

    noise = stack(noises) if any(n is not None for n in noises) else None
    lengths = torch.tensor([len(wave) for wave in waves])
    keys = [audio_key(wave) for wave in waves] if keyed else None
    seconds = float(lengths.sum()) / SAMPLE_RATE
    return Batch(
        stack(waves), lengths, noise, list(scenes), seconds, [row for rows in replaced for row in rows], keys,
        responses={id: response for some in responses for id, response in some.items()},
    )  # fmt: skip


Planner = LengthBucketSampler | ShardSampler
Ready = Callable[[int], None]
"""Called with a step before its crops are dealt to the workers: waits until they can be read."""


class StepSampler(Sampler[list[tuple[int, Crop]]]):
    """The microbatches of one rank from `start` to `stop`, in order; no state beyond the step."""

    def __init__(self, sampler: Planner, start: int, stop: int, ready: Ready = lambda step: None):
        self.sampler, self.start, self.stop, self.ready = sampler, start, stop, ready

    def __iter__(self) -> Iterator[list[tuple[int, Crop]]]:
        for step in range(self.start, self.stop):
            self.ready(step)
            for microbatch in self.sampler.batch(step).parts:
                yield [(step, crop) for crop in microbatch]


def plan_batches(recipe: Recipe, materials: Materials, rank: int, world: int) -> Planner:
    """Which crops are read in which step by one of `world` processes."""
    data, settings = recipe.data, recipe.training
    options = (
        data.batch_seconds, data.crop_seconds, data.min_seconds, data.max_trim, settings.seed, rank, world,
        data.microbatch_seconds, data.fixed_crops, data.frame_multiple,
    )  # fmt: skip
    if materials.shards:
        return ShardSampler(materials.shards, *options, data.window_mb)
    return LengthBucketSampler([r.seconds for r in materials.train], *options)


def open_speech(recipe: Recipe, materials: Materials, sampler: Planner) -> tuple[CropDataset, Ready]:
    """What the loader reads training speech from, and what waits until it is there."""
    if not isinstance(sampler, ShardSampler) or materials.spool is None:
        return CropDataset(materials.train, materials.train_environment), lambda step: None
    streams, spool, workers = sampler, materials.spool, recipe.data.workers
    ahead = (PREFETCH + 1) * workers // streams.accumulate + 3  # steps that were dealt to the workers and not yet read

    def ready(step: int) -> None:
        spool.need(step, *streams.needed(step), ahead)

    return ShardDataset(materials.shards, spool.folder, materials.train_environment), ready


def _collate(items: Sequence[Item | UserError], keyed: bool) -> Batch | Parcel | UserError:
    wrong = next((item for item in items if isinstance(item, UserError)), None)
    if wrong is not None:
        return wrong
    batch = collate(items, keyed)  # type: ignore[arg-type]
    return batch if get_worker_info() is None else Parcel.of(batch)


def read_batches(
    dataset: CropDataset, sampler: StepSampler, workers: int, device: torch.device, keyed: bool = False
) -> Iterator[Batch]:
    """The microbatches of `sampler` on `device`, contaminated; read by `workers` processes, or by this one.

    For a GPU they are copied and rendered one ahead, beside the computation. Raises what a worker met.
    """

    def prepare(sent: Batch | Parcel | UserError) -> Batch:
        if isinstance(sent, UserError):
            raise sent
        batch = (sent.open() if isinstance(sent, Parcel) else sent).to(device)
        return replace(batch, noisy=batch.contaminated(dataset.environment))

    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=partial(_collate, keyed=keyed),
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(0),  # starting workers must not draw from the global one
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=dataset.activity.begin,
    )
    yield from map(prepare, loader) if device.type != "cuda" else _ahead(loader, prepare, device)


def _ahead(loader: Iterable[Any], prepare: Callable[[Any], Batch], device: torch.device) -> Iterator[Batch]:
    """Each batch of `loader` prepared on a stream of its own, while the GPU computes on the one before."""
    beside, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    held: Batch | None = None
    for batch in loader:
        beside.wait_stream(computing)  # filters that a validation put on the device must be there
        with torch.cuda.stream(beside):
            ready = prepare(batch)
        if held is not None:
            yield held
        held = ready
        computing.wait_stream(beside)
        for tensor in (held.clean, held.noise, held.noisy):
            if tensor is not None:
                tensor.record_stream(computing)
    if held is not None:
        yield held
