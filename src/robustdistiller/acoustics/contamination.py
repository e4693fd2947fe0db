"""One utterance or file in, contaminated as in training out, with what was drawn: the verb ``contaminate``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..audio.io import SAMPLE_RATE, probe, read_audio, write_audio
from ..audio.prepare import prepare_all
from ..config import EnvironmentConfig, NoiseMix
from ..errors import AudioError, UserError, closest
from ..files import write_json
from ..outputs import claim_file, is_audio_of, is_json_with, software
from ..progress import Progress
from ..randomness import fraction, generator
from .convolution import audible_power
from .curriculum import snr_at
from .environment import Environment, fixed_scene
from .noise import SILENCE, SYNTHETIC_KINDS, NoiseBank
from .rooms import RoomBank
from .scene import Scene

SIMULATED = "simulated"
LONGEST_HOURS = 1.0


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
    contaminated = environment.render(torch.from_numpy(wave)[None], torch.tensor([len(wave)]), None, [scene])
    return contaminated[0].numpy(), scene


def contaminate_file(
    speech: str | Path,
    out: str | Path,
    noise: Sequence[str] = (),
    rooms: Sequence[str] = (),
    snr_db: float | None = None,
    seed: int = 0,
    config: EnvironmentConfig = EnvironmentConfig(),
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Scene:
    """Contaminate the file `speech` into `out`, and write the scene beside it as JSON.

    What is given is applied: noise, a room, or both. Everything drawn depends on `seed` and the name of the file.

    Args:
        speech: An audio file of at most an hour.
        out: The file to write: .wav, .flac or .ogg.
        noise: Sources as for training (folders, manifests, corpora), and synthetic kinds (white, pink, brown, rain, …).
        rooms: Sources of room impulse responses, and "simulated".
        snr_db: In dB; drawn from `config.snr_db` by default.
        seed: Of everything drawn.
        config: What is left open.
        progress: Follows the scan of the sources.
        overwrite: Lets an earlier output be replaced.

    Raises:
        UserError: Something is missing or would be replaced, or the audio cannot be read.
    """
    if not noise and not rooms:
        raise UserError("There is nothing to contaminate the speech with: pass --noise, --rooms or both.")
    if snr_db is not None and not noise:
        raise UserError("An SNR needs noise: pass --noise with a folder, or --noise white.")
    scene_file = Path(out).with_suffix(".json")
    read = [speech, *noise, *rooms]
    claim_file(out, "contaminate", is_audio_of("contaminate"), read, overwrite)
    claim_file(scene_file, "contaminate", is_json_with("utterance", "kind", "snr_db"), read, overwrite)
    seconds = probe(speech).seconds
    if seconds > LONGEST_HOURS * 3600:
        raise AudioError(f"{speech} is longer than an hour: cut it into shorter files first.", "too-long")
    wave = read_audio(speech)
    utterance = os.fsencode(Path(speech).name).decode(errors="replace")  # a name may be no text, the scene is

    synthetic = [name for name in noise if _is_word(name, SYNTHETIC_KINDS)]
    folders = [name for name in noise if name not in synthetic]
    if "babble" in folders and not Path("babble").exists():
        raise UserError("Babble is mixed from the training speech, and here is none: pass a folder of talk as --noise.")
    recordings = prepare_all(folders, "noise", progress=progress).recordings if folders else ()
    bank = NoiseBank(recordings, NoiseMix(recorded=float(bool(folders)), white=1.0))
    room_folders = [name for name in rooms if not _is_word(name, [SIMULATED])]
    responses = prepare_all(room_folders, "rooms", progress=progress).recordings if room_folders else ()
    room_bank = RoomBank(responses, 0.5 if SIMULATED in rooms else 0.0)
    if SIMULATED in rooms:
        room_bank.add_simulated(config.simulated_rooms or 1, config.t60_seconds, seed)
    environment = Environment(config, bank, room_bank, seed)
    if noise and snr_db is None:
        snr_db = snr_at(config, config.curriculum.steps, fraction(seed, utterance, "snr"))
    scene = fixed_scene(
        environment, utterance, len(wave) / SAMPLE_RATE, seed, snr_db,
        [*synthetic, *(["recorded"] if folders else [])] or None,
        room_bank.draw(generator(seed, utterance, "room")) if rooms else None, config.noise_in_room,
    )  # fmt: skip
    contaminated, scene = contaminate(wave, environment, utterance, scene=scene)
    write_audio(out, contaminated, comment=software("contaminate"))
    write_json(scene_file, scene.to_dict())
    return scene


def _is_word(source: str, words: Sequence[str]) -> bool:
    """Whether a source is one of `words` and no file. Raises `UserError` for a slip of one."""
    if os.path.exists(source):
        return False
    if source not in words and source.isalpha() and (meant := closest(source, words)):
        raise UserError(f"There is no file or folder {source}.{meant}")
    return source in words
