"""The rooms that may be drawn: recorded impulse responses, simulated ones, and a bank that draws from both."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from ..audio.manifest import Recording
from ..audio.rir import READ, RIR, prepare_rir
from ..errors import AudioError, UserError, closest
from ..randomness import generator
from .cache import ByteCache
from .clips import Complaints, by_id
from .simulation import TWO_POSITIONS, simulate_room

TRIES = 20
CACHE_BYTES = 256 << 20  # of responses that a process keeps


class RoomBank:
    """Room responses by id: recorded ones are read when first needed, simulated ones computed, both kept in memory.

    Args:
        recordings: Responses; those of the same `Recording.group` belong to one room.
        simulated_share: Probability of a simulated room where there are recorded ones.
    """

    def __init__(self, recordings: Iterable[Recording] = (), simulated_share: float = 0.0) -> None:
        self._recordings = by_id(recordings)
        self._simulated: dict[str, tuple[str, int, int, int, tuple[float, float]]] = {}
        self._recorded_ids, self._simulated_ids = list(self._recordings), list(self._simulated)
        self._rooms: dict[str, list[str]] = {}
        for id, recording in self._recordings.items():
            self._rooms.setdefault(recording.group or id, []).append(id)
        self._share = simulated_share
        self._passed_over = Complaints("Room response")
        self._cache: ByteCache[tuple[RIR, ...]] = ByteCache(CACHE_BYTES)

    def add_simulated(
        self, count: int, t60_range: tuple[float, float] = (0.2, 1.0), seed: int = 0, split: str = "train"
    ) -> RoomBank:
        """Put simulated rooms beside those of the bank; they are computed when first needed (10 ms each).

        Args:
            count: How many rooms, with two source positions each.
            t60_range: Lowest and highest reverberation time, seconds.
            seed: Another one gives other rooms.
            split: Another one gives other rooms.

        Returns:
            The bank.
        """
        for number in range(count):
            room = f"simulated-{split}-{seed}-{number:04d}"
            for position in range(TWO_POSITIONS):
                id = f"{room}-{'ab'[position]}"
                self._simulated[id] = (split, seed, number, position, t60_range)
                self._rooms.setdefault(room, []).append(id)
        self._simulated_ids = list(self._simulated)
        return self

    def __len__(self) -> int:
        return len(self._recorded_ids) + len(self._simulated_ids)

    @property
    def ids(self) -> list[str]:
        """The ids of all responses, recorded ones first."""
        return self._recorded_ids + self._simulated_ids

    def load(self, id: str) -> RIR:
        """The response `id`. Raises `UserError` if it is unknown, `AudioError` if it cannot be used."""
        if id in self._simulated:
            split, seed, number, position, t60_range = self._simulated[id]
            key = (split, seed, number, t60_range)
            room = self._cache.get(key, lambda: simulate_room(generator(seed, "room", split, number), t60_range))
            return room[position]
        recording = self._recording(id)
        return self._cache.get(id, lambda: (self._read(recording),))[0]

    def t60(self, id: str) -> float | None:
        """The measured T60 of a response in seconds, None where it cannot be told: known from the scan, if there was one."""
        recording = self._recordings.get(id)
        return recording.extra["t60"] if recording and _scanned(recording) else self.load(id).t60

    def _check(self, id: str) -> None:
        """Raise `AudioError` for a response that cannot be used; one that was scanned need only be there still."""
        recording = self._recordings.get(id)
        if recording is None or not _scanned(recording):
            self.load(id)
        elif not os.path.isfile(recording.path):
            raise AudioError(f"{recording.path} does not exist any more.", "missing")

    def _recording(self, id: str) -> Recording:
        if id not in self._recordings:
            raise UserError(f"The room '{id}' is not in this bank: pass the --rooms it is from.{closest(id, self.ids)}")
        return self._recordings[id]

    def _read(self, recording: Recording) -> RIR:
        try:
            return prepare_rir(recording.load(0.0, READ))
        except AudioError as error:
            raise AudioError(f"{recording.path}: {error}", error.reason) from error

    def draw(self, rng: np.random.Generator) -> str:
        """The id of a random response, all being equally likely; unusable ones are passed over and logged."""
        for _ in range(TRIES):
            share, pick = rng.random(2)
            ids = self._simulated_ids if share < self._share and self._simulated_ids else self._recorded_ids
            ids = ids or self._simulated_ids
            if not ids:
                raise UserError("There are no rooms: pass --rooms, or set environment.simulated_rooms above 0.")
            id = ids[int(pick * len(ids))]
            try:
                self._check(id)
                return id
            except AudioError as error:
                self._passed_over(id, error)
        if self._simulated_ids:
            return self._simulated_ids[int(pick * len(self._simulated_ids))]
        raise UserError(f"{TRIES} room responses in a row cannot be used, such as {id}: check what --rooms names.")

    def neighbour(self, id: str, uniform: float) -> str:
        """Another response of the room of `id`, picked by a `uniform` number in [0, 1); `id` if it is the only one."""
        others = [other for other in self._rooms[self.room(id)] if other != id] or [id]
        return others[int(uniform * len(others))]

    def room(self, id: str) -> str:
        """The room to which a response belongs."""
        if id in self._simulated:
            return id.rpartition("-")[0]
        return self._recording(id).group or id

    def find(self, name: str) -> list[str]:
        """The responses that `name` stands for: one by its id, or all of a room."""
        if name in self._recordings or name in self._simulated:
            return [name]
        if name in self._rooms:
            return self._rooms[name]
        raise UserError(f"There is no room '{name}'.{closest(name, [*self._rooms, *self.ids])}")


def _scanned(recording: Recording) -> bool:
    """Whether its T60 was measured by a scan, which also found that it can be used."""
    return "t60" in recording.extra and isinstance(recording.extra["t60"], float | None)
