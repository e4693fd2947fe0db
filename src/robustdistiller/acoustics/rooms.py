"""The rooms that may be heard: recorded impulse responses, simulated ones, and a bank that draws from both."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np

from ..audio.io import SAMPLE_RATE
from ..audio.manifest import Recording
from ..errors import AudioError, UserError, closest
from ..randomness import generator
from .cache import ByteCache
from .clips import by_id
from .decay import LEAD, Response, direct_path, measure_t60
from .simulation import TWO_POSITIONS, simulate_room

__all__ = ["Response", "RoomBank", "direct_path", "measure_t60", "prepare_response", "simulate_room"]

log = logging.getLogger(__name__)

LONGEST = 2.0  # seconds kept after the direct path
READ = 30.0  # seconds of a file in which its direct path must come
INAUDIBLE = 1e-7  # -70 dB of the energy: what is left of a response after this is cut off
FADE = SAMPLE_RATE // 100  # samples over which a response that had to be cut fades out
TRIES = 20


def prepare_response(wave: np.ndarray) -> Response:
    """Make a recorded impulse response usable: trimmed around its direct path, positive there, of unit energy.

    `wave` is (L,) at 16 kHz. Raises `AudioError` when it is empty, all zero, or holds samples that are not numbers.
    """
    wave = np.asarray(wave, np.float64)
    if not np.all(np.isfinite(wave)):
        raise AudioError("The room response holds samples that are not numbers: leave it out.", "nan")
    if not np.any(wave):
        raise AudioError("The room response is empty or silent: leave it out.", "empty")
    wave = wave / np.abs(wave).max()
    peak = direct_path(wave)
    t60 = measure_t60(wave, peak)
    first, last = max(0, peak - LEAD), peak + round(LONGEST * SAMPLE_RATE)
    kept = wave[first:last].copy()
    if len(wave) > last:
        kept[-FADE:] *= np.linspace(1, 0, FADE)
    left = np.cumsum(kept[::-1] ** 2)[::-1]
    kept = kept[: max(peak - first + 1, int(np.count_nonzero(left > INAUDIBLE * left[0])))]
    kept *= np.sign(kept[peak - first]) / np.sqrt(np.sum(kept**2))
    return Response(kept.astype(np.float32), peak - first, t60)


class RoomBank:
    """Room responses by id: recorded ones are read when first needed, simulated ones computed, both kept in memory.

    Responses with the same `Recording.group` belong to one room. `simulated_share` is the probability of a simulated
    room where there are recorded ones; `cache_mb` bounds the memory.
    """

    def __init__(
        self, recordings: Iterable[Recording] = (), simulated_share: float = 0.0, cache_mb: float = 256.0
    ) -> None:
        self._recordings = by_id(recordings)
        self._simulated: dict[str, tuple[str, int, int, int, tuple[float, float]]] = {}
        self._recorded_ids, self._simulated_ids = list(self._recordings), list(self._simulated)
        self._rooms: dict[str, list[str]] = {}
        for id, recording in self._recordings.items():
            self._rooms.setdefault(recording.group or id, []).append(id)
        self._share = simulated_share
        self._complained: set[str] = set()
        self._cache: ByteCache[tuple[Response, ...]] = ByteCache(cache_mb * 2**20)

    @classmethod
    def simulated(
        cls, count: int, t60_range: tuple[float, float] = (0.2, 1.0), seed: int = 0, split: str = "train"
    ) -> RoomBank:
        """`count` simulated rooms with two source positions each; those of another seed or split are other rooms."""
        bank = cls()
        bank.add_simulated(count, t60_range, seed, split)
        return bank

    def add_simulated(self, count: int, t60_range: tuple[float, float], seed: int = 0, split: str = "train") -> None:
        """Put `count` simulated rooms beside those of the bank. They are computed when first heard (10 ms each)."""
        for number in range(count):
            room = f"simulated-{split}-{seed}-{number:04d}"
            for position in range(TWO_POSITIONS):
                id = f"{room}-{'ab'[position]}"
                self._simulated[id] = (split, seed, number, position, t60_range)
                self._rooms.setdefault(room, []).append(id)
        self._simulated_ids = list(self._simulated)

    def __len__(self) -> int:
        return len(self._recorded_ids) + len(self._simulated_ids)

    @property
    def ids(self) -> list[str]:
        """The ids of all responses, recorded ones first."""
        return self._recorded_ids + self._simulated_ids

    def load(self, id: str) -> Response:
        """The response `id`. Raises `UserError` if it is unknown, `AudioError` if it cannot be used."""
        if id in self._simulated:
            split, seed, number, position, t60_range = self._simulated[id]
            room = self._cache.get(
                (split, seed, number, t60_range),
                lambda: simulate_room(generator(seed, "room", split, number), t60_range),
            )
            return room[position]
        if id not in self._recordings:
            raise UserError(f"The room '{id}' is not in this bank: pass the --rooms it is from.{closest(id, self.ids)}")
        return self._cache.get(id, lambda: (self._read(self._recordings[id]),))[0]

    def _read(self, recording: Recording) -> Response:
        try:
            return prepare_response(recording.load(0.0, READ))
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
                self.load(id)
                return id
            except AudioError as error:
                if id not in self._complained:
                    self._complained.add(id)
                    log.warning("Room response %s is passed over: %s", id, error)
        if self._simulated_ids:
            return self._simulated_ids[int(pick * len(self._simulated_ids))]
        raise UserError(
            f"{TRIES} room responses in a row cannot be used, such as {id}: check the folder given as --rooms."
        )

    def neighbour(self, id: str, uniform: float) -> str:
        """Another response of the room of `id`, picked by a `uniform` number in [0, 1); `id` if it is the only one."""
        others = [other for other in self._rooms[self.room(id)] if other != id] or [id]
        return others[int(uniform * len(others))]

    def room(self, id: str) -> str:
        """The room to which a response belongs."""
        if id in self._simulated:
            return id.rpartition("-")[0]
        recording = self._recordings.get(id)
        if recording is None:
            raise UserError(f"The room '{id}' is not in this bank: pass the --rooms it is from.{closest(id, self.ids)}")
        return recording.group or id

    def find(self, name: str) -> list[str]:
        """The responses that `name` stands for: one by its id, or all of a room."""
        if name in self._recordings or name in self._simulated:
            return [name]
        if name in self._rooms:
            return self._rooms[name]
        raise UserError(f"There is no room '{name}'.{closest(name, [*self._rooms, *self.ids])}")
