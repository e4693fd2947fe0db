"""Renders conditions to audio. Scenes are fixed by the seed: every model gets the same samples.

The noise of an utterance is the same stretch at every SNR, and its room the same in `both` as in `reverb` of that bin:
what differs between two conditions is what their names say.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..acoustics.cache import ByteCache
from ..acoustics.environment import Environment, fixed_scene
from ..acoustics.noise import SYNTHETIC_KINDS, NoiseBank
from ..acoustics.rooms import RoomBank
from ..acoustics.scene import Scene
from ..audio.corpora import Role
from ..audio.manifest import Recording
from ..config import EnvironmentConfig, NoiseMix
from ..errors import AudioError, UserError
from ..files import digest
from ..models.frames import GRID
from ..randomness import generator
from .conditions import Bin, Condition, ConditionsConfig, NoiseSource, RoomSource, grid
from .fairness import note_overlap
from .features import Render
from .sources import fingerprint, matches, read_source, value_of
from .task_file import Example, Task

logger = logging.getLogger(__name__)

FORMAT = 1  # raise it when a condition sounds different though its file, its sources and its seed are the same
CACHE_MB = 64.0  # of decoded audio of every noise type, and four times as much speech
TRAINING = Condition("training", "contaminated training", "training")


@dataclass
class _Noise:
    """A noise type: its recordings, for babble None until a task gives the voices."""

    kind: str
    seen: bool
    recordings: tuple[Recording, ...]


@dataclass
class _Rooms:
    """A room source: its bank, and the responses of every T60 bin."""

    bank: RoomBank
    seen: bool
    bins: dict[tuple[float, float], list[str]]
    recordings: tuple[Recording, ...]


class ConditionRenderer:
    """All conditions of a benchmark, ready to be rendered.

    noise, rooms: sources for those entries of the file that name none (``--noise``, ``--rooms``).
    """

    def __init__(
        self,
        config: ConditionsConfig,
        folder: Path = Path(),
        noise: Sequence[str] = (),
        rooms: Sequence[str] = (),
        allow_overlap: bool = False,
        cache: Path | None = None,
    ):
        self.config = config
        self.notes: list[str] = []
        self._given = {"noise": tuple(noise), "rooms": tuple(rooms)}
        self._folder, self._cache = folder, cache
        self._waves: ByteCache[np.ndarray] = ByteCache(4 * CACHE_MB * 2**20)
        self._training: dict[str, list[Recording]] = {"noise": [], "rooms": []}
        self._check_given()
        self._noises = self._collect_noises()
        self._rooms = self._collect_rooms()
        origins = {name: (origin, item.seen) for name, (origin, item) in self._noises.items()}
        cells = grid(config, origins, {name: item.seen for name, item in self._rooms.items()})
        self.conditions = [c for c in cells if not c.rooms or not c.t60 or self._rooms[c.rooms].bins[c.t60]]
        names = [cell.name for cell in self.conditions]
        twice = next((name for k, name in enumerate(names) if name in names[:k]), None)
        if twice is not None:
            raise UserError(f"Two conditions of {config.name} are called {twice}: give their sources other names.")
        if not self.conditions:
            raise UserError(f"No condition of {config.name} can be made: pass --noise or --rooms, or another file.")
        self._environments: dict[tuple[str, str, str | None], Environment] = {}
        self._banks: dict[tuple[str, str], NoiseBank] = {}
        self._check_training_overlap(allow_overlap)

    # Sources

    def _collect_noises(self) -> dict[str, tuple[str, _Noise]]:
        types: dict[str, tuple[str, _Noise]] = {}
        for source in self.config.noise.sources:
            if source.kind != "recorded":
                recordings = self._read(source, "speech") if source.source else ()
                types[source.name] = (source.name, _Noise(source.kind, source.seen, recordings))
                continue
            recordings = self._read(source, "noise")
            if not recordings:
                self.notes.append(f"Noise '{source.name}' is left out: no recorded noise was named (--noise).")
                continue
            for name, members in _split_by(source, recordings).items():
                types[name] = (source.name, _Noise("recorded", source.seen, tuple(members)))
        return types

    def _collect_rooms(self) -> dict[str, _Rooms]:
        sources: dict[str, _Rooms] = {}
        bins = dict.fromkeys([*self.config.rooms.t60, *(self.config.both.t60 or ())])
        for source in self.config.rooms.sources:
            if source.simulated:
                bank, found = RoomBank(), {}
                recordings: tuple[Recording, ...] = ()
                for low, high in bins:
                    known, limits = len(bank), (max(0.1, low), high)
                    bank.add_simulated(source.simulated, limits, self.config.seed, f"test-{low:g}-{high:g}")
                    found[low, high] = _binned(bank, bank.ids[known:], [(low, high)])[low, high]
            else:
                recordings = self._read(source, "rooms")
                if not recordings:
                    self.notes.append(f"Rooms '{source.name}' are left out: no room responses were named (--rooms).")
                    continue
                bank = RoomBank(recordings)
                found = _binned(bank, bank.ids, list(bins))
            sources[source.name] = _Rooms(bank, source.seen, found, recordings)
            for (low, high), ids in found.items():
                if not ids:
                    self.notes.append(f"Rooms '{source.name}' have no response with a T60 of {low:g} to {high:g} s.")
        return sources

    def _read(self, source: NoiseSource | RoomSource, role: Role) -> tuple[Recording, ...]:
        """The recordings of one entry; those of other splits are kept aside for contaminated training."""
        places = [(source.source, source.root)] if source.source else [(p, None) for p in self._given.get(role, ())]
        kept: list[Recording] = []
        for place, root in places:
            recordings = read_source(str(place), role, self._folder, root, self._cache)
            chosen = _evaluation_part(recordings, source.where)
            if not chosen:
                raise UserError(f"Nothing in {place} fits 'where' of the {role} source {source.name}: correct it.")
            kept += chosen
            if role in self._training:
                tested = {recording.id for recording in chosen}
                self._training[role] += [r for r in recordings if r.split == "train" and r.id not in tested]
        return tuple(kept)

    def _check_given(self) -> None:
        """`--noise` and `--rooms` that no source of the file asks for are read all the same, and remarked."""
        for role, takes in (
            ("noise", [s for s in self.config.noise.sources if s.kind == "recorded" and not s.source]),
            ("rooms", [s for s in self.config.rooms.sources if not s.simulated and not s.source]),
        ):
            if self._given[role] and not takes:
                for place in self._given[role]:
                    read_source(place, "noise" if role == "noise" else "rooms", self._folder, None, self._cache)
                self.notes.append(f"--{role} is not used: the conditions {self.config.name} have no place for it.")

    # What a condition depends on

    def groups(self, role: str) -> set[str]:
        """The noise recordings or rooms that occur in conditions marked unseen."""
        members = [item for _, item in self._noises.values()] if role == "noise" else list(self._rooms.values())
        return {r.group or r.id for item in members if not item.seen for r in item.recordings}

    def synthetic_noises(self) -> set[str]:
        """The kinds of noise that are made, of speech or from nothing, in conditions marked unseen."""
        kinds = (item.kind for _, item in self._noises.values() if not item.seen)
        return {kind for kind in kinds if kind in SYNTHETIC_KINDS or kind == "babble"}

    def digest(self, condition: Condition, task: Task, part: str) -> str:
        """Of everything that decides how the utterances of a part of a task sound under a condition."""
        told: list[Any] = [FORMAT, condition.to_dict(), self.config.seed]
        if condition is TRAINING:
            told.append([self.config.training.model_dump(mode="json"), *map(fingerprint, self._training.values())])
        elif condition.noise:
            noise = self._noises[condition.noise][1]
            told.append([noise.kind, fingerprint(noise.recordings)])
            if noise.kind == "babble" and not noise.recordings:
                told.append(task.fingerprints[part])
        if condition.rooms and condition.t60:
            rooms = self._rooms[condition.rooms]
            told.append([rooms.bins[condition.t60], fingerprint(rooms.recordings)])
        return digest(told)

    # How it sounds

    def scene(self, condition: Condition, task: Task, part: str, example: Example) -> Scene:
        """What happens to one utterance under a condition: a pure function of the seed, the condition and the utterance."""
        recording = example.recording
        environment = self._environment(condition, task, part)
        if condition is TRAINING:
            return environment.draw(recording.id, recording.seconds, 0, speaker=recording.speaker)
        room = None
        if condition.rooms and condition.t60:
            ids = self._rooms[condition.rooms].bins[condition.t60]
            pick = generator(self.config.seed, "room", condition.rooms, str(condition.t60), recording.id).random()
            room = ids[int(pick * len(ids))]
        noise = self._noises[condition.noise][1].kind if condition.noise else None
        return fixed_scene(
            environment, recording.id, recording.seconds, self.config.seed, condition.snr_db, noise, room,
            speaker=recording.speaker,
        )  # fmt: skip

    def render(self, condition: Condition, task: Task, part: str, examples: Sequence[Example]) -> Render:
        """A function from indices into `examples` to contaminated waveforms (B, T) and lengths (B,)."""

        def render(indices: Sequence[int]) -> tuple[Tensor, Tensor]:
            chosen = [examples[i] for i in indices]
            clean, lengths = self.load(chosen, task)
            return self.contaminate(clean, lengths, condition, task, part, chosen), lengths

        return render

    def load(self, examples: Sequence[Example], task: Task) -> tuple[Tensor, Tensor]:
        """Clean waveforms, padded with zeros: (B, T) float32 and valid lengths (B,) in samples."""
        waves = [self._wave(example.recording, task.config.level_dbfs) for example in examples]
        lengths = torch.tensor([len(wave) for wave in waves])
        batch = torch.zeros(len(waves), int(lengths.max()))
        for row, wave in enumerate(waves):
            batch[row, : len(wave)] = torch.from_numpy(wave)
        return batch, lengths

    def _wave(self, recording: Recording, level_dbfs: float | None) -> np.ndarray:
        key = (recording.id, recording.path, recording.start, recording.seconds, level_dbfs)
        return self._waves.get(key, lambda: load_wave(recording, level_dbfs))

    def contaminate(
        self, clean: Tensor, lengths: Tensor, condition: Condition, task: Task, part: str, examples: Sequence[Example]
    ) -> Tensor:
        """Clean waveforms (B, T) of `examples` as they sound under a condition, (B, T)."""
        if condition.kind == "clean":
            return clean
        environment = self._environment(condition, task, part)
        scenes = [self.scene(condition, task, part, example) for example in examples]
        return environment.render(clean, lengths, None, scenes)

    def _environment(self, condition: Condition, task: Task, part: str) -> Environment:
        key = (self._talkers(condition, task, part), condition.noise or condition.kind, condition.rooms)
        if key not in self._environments:
            self._environments[key] = self._build(condition, task, part)
        return self._environments[key]

    def _build(self, condition: Condition, task: Task, part: str) -> Environment:
        if condition is TRAINING:
            voices = task.voices(part)
            noise, rooms = self._training["noise"], self._training["rooms"]
            return Environment.build(self.config.training, noise, rooms, voices, self.config.seed, "train", CACHE_MB)
        bank = self._noise_bank(condition, task, part) if condition.noise else None
        responses = self._rooms[condition.rooms].bank if condition.rooms else None
        return Environment(EnvironmentConfig(), bank, responses, self.config.seed)

    def _noise_bank(self, condition: Condition, task: Task, part: str) -> NoiseBank:
        """The bank of a noise type, shared by all conditions that use it."""
        key = (self._talkers(condition, task, part), str(condition.noise))
        if key not in self._banks:
            noise = self._noises[str(condition.noise)][1]
            mix = NoiseMix(**{kind: float(kind == noise.kind) for kind in NoiseMix.model_fields})
            voices = noise.recordings or task.voices(part)
            recorded, speech = ((), voices) if noise.kind == "babble" else (noise.recordings, ())
            self._banks[key] = NoiseBank(recorded, mix, speech, CACHE_MB)
        return self._banks[key]

    def _talkers(self, condition: Condition, task: Task, part: str) -> str:
        """Whose voices a condition needs: those of one part of a task where it has babble, else nobody's."""
        babble = condition.noise is not None and self._noises[condition.noise][1].kind == "babble"
        return f"{task.name} {part}" if babble or condition is TRAINING else ""

    def _check_training_overlap(self, allow: bool) -> None:
        """Noise and rooms of contaminated training must not come back in the test."""
        for role, recordings in self._training.items():
            shared = {r.group or r.id for r in recordings} & self.groups(role)
            if shared:
                sentence = (
                    f"The {role} sources have {len(shared)} recordings or rooms in training and in test "
                    f"(for example {sorted(shared)[0]})"
                )
                self.notes.append(note_overlap(sentence, "separate their splits", allow))


def load_wave(recording: Recording, level_dbfs: float | None = None) -> np.ndarray:
    """One utterance (T,), brought to an RMS of `level_dbfs` if given. Raises `AudioError` when it cannot be used."""
    wave = recording.load()
    if len(wave) < GRID.field:
        raise AudioError(f"{recording.path} is shorter than 25 ms: leave it out.", "too-short")
    if level_dbfs is not None:
        rms = float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))
        if rms > 0:
            wave = wave * np.float32(10 ** (level_dbfs / 20) / rms)
    return np.ascontiguousarray(wave, np.float32)


def _evaluation_part(recordings: list[Recording], where: dict[str, Any]) -> list[Recording]:
    """What `where` asks for; of a source with splits and no word about them, its test part or else its valid part."""
    kept = [r for r in recordings if matches(r, where)]
    if "split" not in where:
        for split in ("test", "valid"):
            part = [r for r in kept if r.split == split]
            if part:
                return part
    return kept


def _split_by(source: NoiseSource, recordings: Sequence[Recording]) -> dict[str, list[Recording]]:
    if source.by is None:
        return {source.name: list(recordings)}
    types: dict[str, list[Recording]] = {}
    for recording in recordings:
        value = value_of(recording, source.by)
        if value is None:
            raise UserError(f"The noise {recording.id} has no field '{source.by}': correct 'by' of {source.name}.")
        types.setdefault("".join(c if c.isalnum() or c in "._-" else "_" for c in str(value)), []).append(recording)
    return dict(sorted(types.items()))


def _binned(bank: RoomBank, ids: Sequence[str], bins: Sequence[Bin]) -> dict[Bin, list[str]]:
    """The responses whose measured T60 lies in each bin [low, high); every one is read once, unusable ones are passed over."""
    found: dict[Bin, list[str]] = {place: [] for place in bins}
    for name in ids:
        try:
            t60 = bank.t60(name)
        except AudioError as error:
            logger.warning("Room response %s is passed over: %s", name, error)
            continue
        for low, high in bins:
            if t60 is not None and low <= t60 < high:
                found[low, high].append(name)
    return found
