"""Contaminated speech on which int8 ranges are set and fidelity is measured: what the student will be given on the device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..acoustics.contamination import contaminate
from ..acoustics.environment import Environment
from ..audio.io import SAMPLE_RATE
from ..audio.manifest import Recording, read_manifest
from ..audio.prepare import prepare_all
from ..config import EnvironmentConfig, NoiseMix
from ..errors import AudioError, UserError
from ..files import StrPath
from ..randomness import generator

logger = logging.getLogger(__name__)

Waves = list[NDArray[np.float32]]
SHORTEST_SECONDS = 0.5


def calibration_waves(
    student: StrPath,
    speech: Sequence[str] = (),
    noise: Sequence[str] = (),
    rooms: Sequence[str] = (),
    count: int = 48,
    seconds: float = 4.0,
    seed: int = 0,
) -> tuple[Waves, str]:
    """`count` utterances (T,) of at most `seconds`, half of them noisy, half of them reverberant, and where they are from.

    Taken from the sources given; else from the training manifests of the run that the student folder lies in; else spoken by
    the synthetic voices. Raises `UserError` when there is no speech at all.
    """
    manifests = Path(student).resolve().parent / "manifests"
    recordings = {}
    for role, sources in (("speech", speech), ("noise", noise), ("rooms", rooms)):
        file = manifests / f"{role}-train.jsonl"
        if sources:
            recordings[role] = prepare_all(sources, role).recordings  # type: ignore[arg-type]
        elif not speech and file.is_file():
            recordings[role] = read_manifest(file)
        else:
            recordings[role] = []
    told = "the given speech" if speech else "the speech of its training"
    clips = _clips(recordings["speech"], count, seconds, seed)
    if not clips:
        clips, told = _spoken(count, seconds, seed), "synthetic speech"
    environment = Environment.build(
        EnvironmentConfig(
            noise_kinds=NoiseMix(recorded=0.7 if recordings["noise"] else 0.0, white=0.15, pink=0.15),
            simulated_rooms=0 if recordings["rooms"] else 8,
        ),
        noise=recordings["noise"],
        rooms=recordings["rooms"],
        seed=seed,
    )
    return [contaminate(wave, environment, name)[0] for name, wave in clips], told


def _clips(recordings: Sequence[Recording], count: int, seconds: float, seed: int) -> list[tuple[str, np.ndarray]]:
    """`count` utterances drawn over all recordings, each a part of at most `seconds`; unreadable ones are passed over."""
    usable = [r for r in recordings if r.seconds >= SHORTEST_SECONDS]
    order = generator(seed, "calibration").permutation(len(usable))
    clips: list[tuple[str, np.ndarray]] = []
    for index in order:
        if len(clips) == count:
            break
        recording = usable[int(index)]
        length = min(seconds, recording.seconds)
        offset = generator(seed, "calibration", recording.id).uniform(0, recording.seconds - length)
        try:
            wave = recording.load(offset, length)
        except AudioError as error:
            logger.warning("%s", error)
            continue
        if len(wave) >= SHORTEST_SECONDS * SAMPLE_RATE:
            clips.append((recording.id, wave))
    return clips


def _spoken(count: int, seconds: float, seed: int) -> list[tuple[str, np.ndarray]]:
    from ..synthetic.speakers import speakers
    from ..synthetic.texts import sentence

    try:
        return [
            (f"sentence-{k}", speaker.say(sentence(generator(seed, "sentence", k))).wave[: int(seconds * SAMPLE_RATE)])
            for k, speaker in enumerate(speakers("train", count, seed))
        ]
    except UserError as error:
        raise UserError(
            "There is no speech to calibrate with: give --speech FOLDER, or install the synthetic voices with "
            " pip install 'robustdistiller[speech]'."
        ) from error
