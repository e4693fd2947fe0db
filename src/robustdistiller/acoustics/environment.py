"""The acoustic environment: what every utterance is contaminated with, drawn as a plain `Scene`.

Method: RobustDistiller (arXiv 2302.09437) section 3.1. One of {clean, noise, reverb, both} for each utterance; how they sound
is in `mixing`. Shapes: B utterances, T samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..audio.manifest import Recording
from ..audio.rir import RIR
from ..config import EnvironmentConfig
from ..errors import UserError
from ..randomness import generator
from .cache import ByteCache
from .convolution import Array
from .curriculum import keeps_room, snr_at
from .effects import draw_effects
from .mixing import render
from .noise import NoiseBank, choose_kind
from .rooms import RoomBank
from .scene import Scene

SPECTRA_MB = 256


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
        kind_at, room_at, snr_u, count_u = generator(self.seed, epoch, utterance, "scene").random(4)
        kind = choose_kind({kind: getattr(config, kind) for kind in ("clean", "noise", "reverb", "both")}, kind_at)
        reverb = kind in ("reverb", "both") and keeps_room(config, step, room_at)
        noisy = kind in ("noise", "both")
        effects = draw_effects(config.effects, generator(self.seed, epoch, utterance, "effects"))
        scene = Scene(utterance, self.seed, epoch, effects=effects)
        if reverb:
            rng = generator(self.seed, epoch, utterance, "room")
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
            noise: What `fetch` gave, (B, T); rows of scenes without noise may hold anything. By default it is read now.
            scenes: One for each utterance.
            responses: What `responses` gave for all of them; those that are missing are read now.

        Raises:
            ValueError: The numbers of rows differ.
            AudioError: Noise or a room response cannot be read any more.
        """
        if len(scenes) != len(clean) or len(lengths) != len(clean):
            raise ValueError(f"{len(clean)} utterances, {len(lengths)} lengths and {len(scenes)} scenes do not match.")
        if noise is None and any(scene.snr_db is not None for scene in scenes):
            noise = torch.zeros(clean.shape)
            for row, scene, length in zip(noise, scenes, lengths.tolist(), strict=True):
                wave = self.fetch(scene, length)
                if wave is not None:
                    row[:length] = torch.from_numpy(wave)
        there = responses or {}
        return render(
            clean, lengths, noise, scenes, lambda room: there.get(room) or self._room_bank().load(room), self._spectra
        )

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
