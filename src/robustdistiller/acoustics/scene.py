"""The acoustic environment: every contamination drawn as a plain `Scene`, then rendered in batches on any device.

Method: RobustDistiller (arXiv 2302.09437) section 3.1. One of {clean, noise, reverb, both} for each utterance; speech
is reverberated first, with the direct path at lag 0 and its level kept; then noise is added at an SNR that is measured
against the reverberant speech over valid samples. Levels leave out the mean and infrasound; the
speech itself keeps them, recorded noise loses them. Shapes: B utterances, T samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from ..audio.io import SAMPLE_RATE
from ..audio.manifest import Recording
from ..config import EnvironmentConfig
from ..errors import AudioError, UserError
from ..randomness import generator
from .cache import ByteCache
from .convolution import (
    Array,
    audible_power,
    choose,
    convolve,
    device_of,
    fft_size,
    gain,
    mean_power,
    on_device,
    rfft,
    scaled,
    zeros_like,
)
from .curriculum import keeps_room, snr_at
from .effects import Effects, apply_effects, draw_effects
from .noise import SILENCE, NoiseBank, NoiseDraw
from .rooms import RIR, RoomBank

LONGEST_HOURS = 1.0
SPECTRA_MB = 256


@dataclass(frozen=True)
class Scene:
    """What happens to one utterance, as plain values: with the same banks it always sounds the same."""

    utterance: str
    seed: int = 0
    epoch: int = 0
    kind: str = "clean"  # clean | noise | reverb | both
    snr_db: float | None = None  # of the reverberant speech to the mixture of all noises
    noises: tuple[NoiseDraw, ...] = ()
    room: str | None = None  # id of the response that the speech is convolved with
    noise_room: str | None = None  # and the noise, if it is
    t60: float | None = None  # measured, seconds
    effects: Effects = field(default_factory=Effects)
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scene:
        """The inverse of `to_dict`, also after a way through JSON."""
        return TypeAdapter(cls).validate_python(values)

    def silenced(self) -> Scene:
        """This scene for silent speech, which `render` leaves as it is: an SNR could not refer to anything."""
        return Scene(self.utterance, self.seed, self.epoch, note="silent speech is left as it is")


class Environment:
    """Draws scenes for utterances and renders them. All randomness comes from (`seed`, epoch, utterance).

    Args:
        config: What is drawn.
        noise: All noises that may be drawn; needed where `config` draws any.
        rooms: All rooms; the same.
        seed: Of everything drawn.
    """

    def __init__(
        self, config: EnvironmentConfig, noise: NoiseBank | None = None, rooms: RoomBank | None = None, seed: int = 0
    ) -> None:
        self.config, self.noise, self.rooms, self.seed = config, noise, rooms, seed
        self._spectra: ByteCache[Array] = ByteCache(SPECTRA_MB * 2**20)

    @classmethod
    def build(
        cls,
        config: EnvironmentConfig,
        noise: Iterable[Recording] = (),
        rooms: Iterable[Recording] = (),
        speech: Iterable[Recording] = (),
        seed: int = 0,
        split: str = "train",
        cache_mb: float = 512.0,
    ) -> Environment:
        """The environment of one `split` with all banks that `config` needs, checked before any work.

        Recordings that name another split are left out, so that nothing is trained on what it will be judged by, and
        simulated rooms of different splits are different rooms.

        Args:
            config: What is drawn.
            noise: Noise recordings.
            rooms: Room impulse responses; without any, `config.simulated_rooms` are simulated.
            speech: What babble is mixed from.
            seed: Of everything drawn.
            split: train, valid or test.
            cache_mb: Megabytes of decoded noise and speech that a process keeps.

        Raises:
            UserError: The configuration asks for what is not there.
        """
        noise, rooms, speech = ([r for r in kind if r.split in (None, split)] for kind in (noise, rooms, speech))
        noise_bank = room_bank = None
        if config.uses_noise:
            noise_bank = NoiseBank(noise, config.noise_kinds, speech, cache_mb, config.babble_voices)
        if config.uses_rooms:
            room_bank = RoomBank(rooms, config.simulated_share)
            if config.simulated_rooms and (not len(room_bank) or config.simulated_share > 0):
                room_bank.add_simulated(config.simulated_rooms, config.t60_seconds, seed, split)
            if not len(room_bank):
                raise UserError(
                    "The recipe asks for reverberation but there are no rooms: "
                    "pass --rooms with a folder of impulse responses, or set environment.simulated_rooms above 0."
                )
        return cls(config, noise_bank, room_bank, seed)

    def draw(self, utterance: str, seconds: float, epoch: int, step: int = 0, speaker: str | None = None) -> Scene:
        """Draw the scene of an utterance: a function of the seed, `epoch` and `utterance`, which `step` changes smoothly.

        Args:
            utterance: Its id, by which babble also avoids the recording itself.
            seconds: How long it is.
            epoch: The visit to it.
            step: Where the curriculum stands: the SNR limit falls, reverberation sets in at some point.
            speaker: Whom babble avoids; known without where the id is one of its recordings.

        Raises:
            UserError: There is no noise or room for a condition that is drawn.
        """
        config = self.config
        kind_at, room_at, snr_u, count_u = self._generator(epoch, utterance, "scene").random(4)
        kind = _condition(config, kind_at)
        reverb = kind in ("reverb", "both") and keeps_room(config, step, room_at)
        noisy = kind in ("noise", "both")
        effects = draw_effects(config.effects, self._generator(epoch, utterance, "effects"))
        scene = Scene(utterance, self.seed, epoch, effects=effects)
        if reverb:
            rng = self._generator(epoch, utterance, "room")
            scene = self._in_room(scene, self._room_bank().draw(rng), rng.random(), config.noise_in_room and noisy)
        if noisy:
            low, high = config.noises
            count = low + int(count_u * (high - low + 1))
            scene = self._with_noise(scene, snr_at(config, step, snr_u), [None] * count, seconds, speaker)
        return scene

    def fetch(self, scene: Scene, num_samples: int) -> np.ndarray | None:
        """The noise of a scene before it is scaled: (T,) float32, or None. Reads files: meant for loader workers."""
        if not scene.noises:
            return None
        return self._noise_bank().fetch(scene.noises, num_samples)

    def responses(self, scene: Scene) -> dict[str, RIR]:
        """The room responses of a scene by id. Reads files or simulates rooms: meant for loader workers.

        Raises:
            AudioError: One cannot be read any more.
        """
        return {room: self._room_bank().load(room) for room in (scene.room, scene.noise_room) if room is not None}

    def render(
        self,
        clean: Tensor,
        lengths: Tensor,
        noise: Tensor | None,
        scenes: Sequence[Scene],
        responses: Mapping[str, RIR] | None = None,
    ) -> Tensor:
        """Contaminated speech: (B, T) float32 on the device of `clean`, zero beyond each length; `clean` is not changed.

        A row depends on its own valid samples and scene alone: on a processor its bits are the same in any batch. On another
        device nothing is read back from it.

        Args:
            clean: Waveforms (B, T).
            lengths: Valid samples, (B,).
            noise: What `fetch` gave, (B, T); rows of scenes without noise may hold anything. None where no scene has noise.
            scenes: One for each utterance.
            responses: What `responses` gave for all of them; those that are missing are read now.

        Raises:
            ValueError: The numbers of rows differ, or noise is missing.
            AudioError: A room response cannot be read any more.
        """
        if len(scenes) != len(clean) or len(lengths) != len(clean):
            raise ValueError(f"{len(clean)} utterances, {len(lengths)} lengths and {len(scenes)} scenes do not match.")
        if noise is None and any(scene.snr_db is not None for scene in scenes):
            raise ValueError("These scenes have noise: pass what `fetch` gave for them.")
        speech, sounds = _values(clean), _values(clean if noise is None else noise.to(clean.device))
        out = zeros_like(speech, tuple(clean.shape))
        for rows, length in _alike(lengths, together=isinstance(speech, Tensor)):
            some = [scenes[i] for i in rows]
            part = _taken(speech, rows, length)
            if length and any(scene.room is not None or scene.snr_db is not None or scene.effects for scene in some):
                part = self._contaminated(some, part, _taken(sounds, rows, length), responses or {})
            if len(rows) == len(out):
                out[:, :length] = part
            else:
                for i, row in zip(rows, part, strict=True):
                    out[i, :length] = row
        return torch.from_numpy(out) if isinstance(out, np.ndarray) else out

    def _contaminated(self, scenes: Sequence[Scene], clean: Array, noise: Array, responses: Mapping[str, RIR]) -> Array:
        """Utterances (R, T) of one length."""
        plan = [(scene.room, scene.noise_room, scene.snr_db, 10 ** (-(scene.snr_db or 0.0) / 20)) for scene in scenes]
        rooms, noise_rooms, snrs, _ = zip(*plan, strict=True)
        table = np.array([[x is not None for x in row[:3]] + [row[3]] for row in plan])  # (R, 4)
        told = on_device(table, device_of(clean))
        in_room, noise_in_room, noisy = told[:, 0] > 0, told[:, 1] > 0, told[:, 2] > 0
        rows = clean
        if any(rooms):
            wet = self._through_rooms(clean, rooms, responses)
            if isinstance(clean, Tensor):  # both at once: a launch costs more than what it does
                level, found = audible_power(torch.stack([clean, wet]))
            else:
                level, found = audible_power(clean), audible_power(wet)
            rows = choose(in_room & (found > 0), scaled(wet, gain(level, found)), clean)
        else:
            level = audible_power(clean)
        if any(snr is not None for snr in snrs):
            if any(noise_rooms):
                wet = self._through_rooms(noise, noise_rooms, responses, circular=True)
                noise = choose(noise_in_room, wet, noise)
            # The speech has the level of the clean speech again, whatever the room.
            rows = choose(noisy, rows + scaled(noise, gain(level, mean_power(noise)) * told[:, 3]), rows)
        if any(scene.effects for scene in scenes):
            rows = rows * 1  # the clean speech itself is not changed
            for i, scene in enumerate(scenes):
                rows[i] = apply_effects(scene.effects, rows[i])
        return choose(level > SILENCE, rows, clean)

    def _through_rooms(
        self, rows: Array, rooms: Sequence[str | None], responses: Mapping[str, RIR], circular: bool = False
    ) -> Array:
        """(R, T), each through its room; nothing is left of those that have none."""
        found = [room if room is None else responses.get(room) or self._room_bank().load(room) for room in rooms]
        delay = max(response.direct for response in found if response is not None)
        length = max(len(response.samples) + delay - response.direct for response in found if response is not None)
        if isinstance(rows, Tensor):
            length = fft_size(length)  # few lengths, so that a GPU prepares for few

        def spectra(size: int) -> Array:
            aligned = np.zeros((len(found), length), np.float32)
            for row, response in zip(aligned, found, strict=True):
                if response is not None:
                    row[delay - response.direct :][: len(response.samples)] = response.samples
            return rfft(on_device(aligned, device_of(rows)), size)

        def kept(size: int) -> Array:  # for a processor, which takes a row at a time
            return self._spectra.get((*rooms, size), lambda: spectra(size))

        return convolve(rows, length, delay, spectra if isinstance(rows, Tensor) else kept, circular)

    def _generator(self, epoch: int, utterance: str, *purpose: str | int) -> np.random.Generator:
        return generator(self.seed, epoch, utterance, *purpose)

    def _in_room(self, scene: Scene, room: str, uniform: float, noise_too: bool) -> Scene:
        rooms = self._room_bank()
        noise_room = rooms.neighbour(room, uniform) if noise_too else None
        return replace(scene, kind="reverb", room=room, noise_room=noise_room, t60=rooms.t60(room))

    def _with_noise(
        self, scene: Scene, snr_db: float, wanted: Sequence[str | None], seconds: float, speaker: str | None
    ) -> Scene:
        bank = self._noise_bank()
        noises = []
        for number, noise in enumerate(wanted):
            rng = generator(scene.seed, scene.epoch, scene.utterance, "noise", number)
            noises.append(bank.draw(rng, seconds, noise, scene.utterance, speaker))
        return replace(scene, kind="both" if scene.room else "noise", snr_db=float(snr_db), noises=tuple(noises))

    def _noise_bank(self) -> NoiseBank:
        if self.noise is None:
            raise UserError("There is no noise for this scene: pass --noise, or set environment.noise and .both to 0.")
        return self.noise

    def _room_bank(self) -> RoomBank:
        if self.rooms is None:
            raise UserError("There is no room for this scene: pass --rooms, or set environment.reverb and .both to 0.")
        return self.rooms


def fixed_scene(
    environment: Environment,
    utterance: str,
    seconds: float,
    seed: int = 0,
    snr_db: float | None = None,
    noise: str | Sequence[str] | None = None,
    room: str | None = None,
    noise_in_room: bool = False,
    speaker: str | None = None,
) -> Scene:
    """A scene whose conditions are given: for evaluation, and to listen to something in particular.

    What is left open (offsets, recordings of a label) depends on `seed` and `utterance` alone, so it is the same at every
    SNR.

    Args:
        environment: Where noise and rooms come from.
        utterance: The id of the utterance.
        seconds: How long it is.
        seed: Of what is left open.
        snr_db: Ratio of the reverberant speech to all noise in dB; goes with `noise`.
        noise: A kind (recorded, white, pink, brown, babble, rain, …), a label or the id of a recording, or several.
        room: The id of a response, or of a room, of whose responses one is drawn.
        noise_in_room: Whether the noise passes another response of that room.
        speaker: Whom babble avoids.

    Raises:
        UserError: Noise comes without an SNR or the reverse, or a name is unknown.
    """
    if (noise is None) != (snr_db is None):
        raise UserError("Noise needs an SNR, and an SNR needs noise: give both or neither.")
    scene = Scene(utterance, seed)
    if room is not None:
        pick, neighbour = generator(seed, 0, utterance, "room").random(2)
        ids = environment._room_bank().find(room)
        scene = environment._in_room(scene, ids[int(pick * len(ids))], neighbour, noise_in_room and noise is not None)
    if noise is not None and snr_db is not None:
        wanted = [noise] if isinstance(noise, str) else list(noise)
        scene = environment._with_noise(scene, snr_db, wanted, seconds, speaker)
    return scene


def contaminate(
    wave: np.ndarray,
    environment: Environment,
    utterance: str = "utterance",
    epoch: int = 0,
    step: int = 0,
    speaker: str | None = None,
    scene: Scene | None = None,
) -> tuple[np.ndarray, Scene]:
    """Contaminate one utterance (T,) at 16 kHz: contaminated speech (T,) float32, and the scene, drawn unless given.

    Args:
        wave: Clean speech, (T,).
        environment: What is drawn, and from where.
        utterance: Its id; with `epoch` and the environment's seed it decides what is drawn.
        epoch: The visit to it.
        step: Where the curriculum stands.
        speaker: Whom babble avoids.
        scene: A scene to apply instead of drawing one.

    Raises:
        AudioError: The speech is empty, longer than an hour, or holds samples that are not numbers.

    Example:
        >>> import numpy as np
        >>> from robustdistiller import Environment, EnvironmentConfig, contaminate
        >>> kinds = {"recorded": 0, "white": 0, "rain": 1}
        >>> environment = Environment.build(EnvironmentConfig(noise_kinds=kinds, clean=0, reverb=0, both=0))
        >>> wave = 0.1 * np.random.default_rng(0).standard_normal(16000)
        >>> noisy, scene = contaminate(wave, environment, "utterance-1")
        >>> noisy.shape, scene.kind, scene.noises[0].kind
        ((16000,), 'noise', 'rain')
    """
    if wave.ndim != 1 or not len(wave):
        raise AudioError("There is no speech to contaminate: give at least one sample of mono audio.", "empty")
    if len(wave) > LONGEST_HOURS * 3600 * SAMPLE_RATE:
        raise AudioError("The speech is longer than an hour: cut it into shorter files first.", "too-long")
    wave = np.ascontiguousarray(wave, np.float32)
    if not np.all(np.isfinite(wave)):
        raise AudioError("The speech holds samples that are not numbers: repair or leave it out.", "nan")
    if scene is None:
        scene = environment.draw(utterance, len(wave) / SAMPLE_RATE, epoch, step, speaker)
    if not audible_power(wave) > SILENCE:
        return wave.copy(), scene.silenced()
    noise = environment.fetch(scene, len(wave))
    sound = None if noise is None else torch.from_numpy(noise)[None]
    contaminated = environment.render(torch.from_numpy(wave)[None], torch.tensor([len(wave)]), sound, [scene])
    return contaminated[0].numpy(), scene


def _condition(config: EnvironmentConfig, uniform: float) -> str:
    shares = {kind: getattr(config, kind) for kind in ("clean", "noise", "reverb", "both")}
    threshold = uniform * sum(shares.values())
    for kind, share in shares.items():
        threshold -= share
        if threshold < 0:
            return kind
    return max(shares, key=lambda kind: shares[kind])


def _values(waves: Tensor) -> Array:
    """(B, T) in single precision, as a NumPy view on a processor."""
    waves = waves.detach().float()
    return waves.numpy() if waves.device.type == "cpu" else waves


def _alike(lengths: Tensor, together: bool) -> Iterator[tuple[list[int], int]]:
    """Numbers of rows of one length, and the length; each by itself where they are not computed `together`."""
    numbers: dict[int, list[int]] = {}
    for i, length in enumerate(lengths.tolist()):
        numbers.setdefault(length, []).append(i)
    for length, rows in numbers.items():
        yield from [(rows, length)] if together else [([row], length) for row in rows]


def _taken(waves: Array, rows: Sequence[int], length: int) -> Array:
    """Some rows of (B, T), of their `length`: a view where that is possible."""
    if len(rows) in (1, len(waves)):
        return waves[rows[0] : rows[-1] + 1, :length]
    return torch.stack([waves[i, :length] for i in rows])
