"""Simulated rooms: the early reflections of a random shoebox (image sources), then a diffuse tail that decays as asked.

A complete image-source model of a lively room needs millions of images, and with fewer its reverberation falls short.
Here the images last until the reflections are too dense to be told apart; noise with the energy that diffuse-field
theory gives takes over. High frequencies decay faster, as in real rooms.
"""

from __future__ import annotations

import math

import numpy as np

from ..audio.io import SAMPLE_RATE
from ..audio.rir import LEAD, RIR, measure_t60
from .convolution import fft_size, irfft, rfft

SOUND = 343.0  # m/s
SMALLEST, LARGEST = (3.0, 2.5, 2.4), (10.0, 8.0, 4.0)  # m: length, width, height
DISTANCE = (0.5, 4.0)  # m between source and microphone
WALL = 0.4  # m that both keep from every wall
TAPS = 40  # half width of the fractional delay filter, samples
HIGH_PASS_HZ = 40.0  # image sources are all positive, which no loudspeaker is
FADE = 0.01  # s from single reflections to the diffuse tail
TWO_POSITIONS = 2
TRIES = 10
CORRECTIONS = 3
SHORTEST_T60 = 0.1  # s
TOLERANCE = 0.03  # of the T60
MOST_ABSORBING = 0.6  # share of the energy that a wall may swallow


def simulate_room(rng: np.random.Generator, t60_range: tuple[float, float]) -> tuple[RIR, ...]:
    """Responses from two places of a random room to one microphone in it, with their measured T60.

    The target T60 is uniform in `t60_range` (seconds, from 0.1 on); source and microphone are 0.5 to 4 m apart. Each
    response is scaled to unit energy, its direct path is positive and falls on one sample. Same `rng`, same bits.
    """
    import scipy.signal  # takes a second, and most programs never simulate

    if t60_range[0] < SHORTEST_T60:
        raise ValueError(f"a T60 of {t60_range[0]} s is drier than furnished rooms: ask for at least {SHORTEST_T60} s")
    target = rng.uniform(*t60_range)
    size = rng.uniform(SMALLEST, LARGEST)
    while (absorption := _absorption(size, target)) > MOST_ABSORBING:
        size = (size + SMALLEST) / 2  # large rooms cannot be that dry
    slope = rng.uniform(0.0, 0.2)  # T60 falls with frequency ** -slope
    microphone = rng.uniform(WALL, size - WALL)
    volume = float(np.prod(size))
    # Reflections overlap from about sqrt(volume) ms on (Polack); three times that is past any audible flutter.
    mixing = max(0.02, 3e-3 * math.sqrt(volume))
    responses = []
    for _ in range(TWO_POSITIONS):
        for _ in range(TRIES):
            source, distance = _place(rng, size, microphone)
            early = _reflections(size, source, microphone, absorption, distance, mixing)
            samples = _tilt(_extend(rng, early, distance, mixing, target, volume), target, slope)
            high_pass = scipy.signal.butter(2, HIGH_PASS_HZ, "highpass", fs=SAMPLE_RATE, output="sos")
            samples = scipy.signal.sosfilt(high_pass, samples)
            # Single reflections and the bands change the slope by some percent: an exponential puts it right.
            for _ in range(CORRECTIONS):
                measured = measure_t60(samples, LEAD) or target
                samples *= 10 ** (-3 * (1 / target - 1 / measured) * _seconds(len(samples)))
            # Another place where reflections pile up to more than the direct sound, or hide behind it altogether.
            if np.argmax(np.abs(samples)) == LEAD and abs((measure_t60(samples, LEAD) or 0) / target - 1) < TOLERANCE:
                break
        samples = (samples / math.copysign(math.sqrt(float(np.sum(samples**2))), samples[LEAD])).astype(np.float32)
        responses.append(RIR(samples, LEAD, measure_t60(samples, LEAD)))
    return tuple(responses)


def _absorption(size: np.ndarray, t60: float) -> float:
    """Eyring's absorption coefficient of the walls for a reverberation time in seconds."""
    half_surface = size[0] * size[1] + size[0] * size[2] + size[1] * size[2]
    return 1 - math.exp(-12 * math.log(10) * float(np.prod(size) / half_surface) / (SOUND * t60))


def _place(rng: np.random.Generator, size: np.ndarray, microphone: np.ndarray) -> tuple[np.ndarray, float]:
    """A source inside the room at a random distance, moved by millimetres so that its sound takes whole samples."""
    for _ in range(1000):
        step = SOUND / SAMPLE_RATE
        distance = round(rng.uniform(*DISTANCE) / step) * step
        direction = rng.standard_normal(3)
        source = microphone + distance * direction / np.sqrt(np.sum(direction**2))
        if np.all(source > WALL) and np.all(source < size - WALL):
            break
    else:
        # A microphone in a corner of a small room leaves few places: towards the middle there is always one.
        direction = size / 2 - microphone
        distance = round(DISTANCE[0] / step) * step
        source = microphone + distance * direction / np.sqrt(np.sum(direction**2))
    return source, distance


def _reflections(
    size: np.ndarray, source: np.ndarray, microphone: np.ndarray, absorption: float, distance: float, mixing: float
) -> np.ndarray:
    """Direct sound and all reflections of a shoebox until shortly after `mixing` seconds: (T,) float64."""
    import pyroomacoustics

    reach = distance + SOUND * (mixing + FADE)
    order = math.ceil(reach * math.sqrt(float(np.sum(size**-2.0)))) + 2  # every image within reach
    walls = pyroomacoustics.Material(absorption)
    room = pyroomacoustics.ShoeBox(size, fs=SAMPLE_RATE, materials=walls, max_order=order)
    room.add_source(source)
    room.add_microphone(microphone)
    room.image_source_model()
    images, damping = room.sources[0].images, room.sources[0].damping[0]
    ways = np.sqrt(np.sum((images - microphone[:, None]) ** 2, axis=0))
    near = np.flatnonzero(ways <= reach)
    return _impulses((ways[near] - distance) / SOUND * SAMPLE_RATE, damping[near] / ways[near])


def _impulses(delays: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Band-limited impulses `delays` samples after the direct path, which falls on LEAD: (T,) float64."""
    whole = np.floor(delays).astype(int)
    taps = np.arange(-TAPS, TAPS + 1)
    position = taps - (delays - whole)[:, None]
    window = 0.5 + 0.5 * np.cos(np.pi * np.clip(position / (TAPS + 1), -1, 1))
    values = gains[:, None] * np.sinc(position) * window
    out = np.zeros(LEAD + int(whole.max()) + TAPS + 1)
    index = LEAD + whole[:, None] + taps
    np.add.at(out, np.maximum(index, 0), values * (index >= 0))
    return out


def _extend(
    rng: np.random.Generator, early: np.ndarray, distance: float, mixing: float, t60: float, volume: float
) -> np.ndarray:
    """Fade from the `early` reflections to a diffuse tail at `mixing` seconds after the direct path."""
    out = np.zeros(LEAD + math.ceil(1.2 * t60 * SAMPLE_RATE))
    time = _seconds(len(out))
    fade = np.clip((time - mixing) / FADE, 0, 1) * (np.pi / 2)
    early = early[: len(out)]
    out[: len(early)] = early * np.cos(fade[: len(early)])
    # Images of strength 1 / length fill space with one per room volume: power 4 pi c / V a second, damped over the way.
    power = 4 * np.pi * SOUND / (volume * SAMPLE_RATE) * 10 ** (-6 * (time + distance / SOUND) / t60)
    return out + rng.standard_normal(len(out)) * np.sqrt(power) * np.sin(fade)


def _tilt(samples: np.ndarray, t60: float, slope: float) -> np.ndarray:
    """Let each octave band f decay at T60 (f / 2 kHz) ** -slope; the direct path, at time 0, stays as it is."""
    size = fft_size(len(samples) + SAMPLE_RATE // 10)
    spectrum = rfft(samples, size)
    octave = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 1.0) / 1000.0)
    centres = np.arange(-3, 4)  # 125 Hz to 8 kHz
    time = np.maximum(_seconds(len(samples)), 0.0)
    out = np.zeros_like(samples)
    for centre in centres:
        # Triangular bands over octaves sum to one, so that at time 0 nothing changes.
        weight = np.clip(1 - np.abs(np.clip(octave, centres[0], centres[-1]) - centre), 0, 1)
        rate = (2.0 ** (centre - 1)) ** slope - 1
        out += irfft(spectrum * weight, size)[: len(samples)] * 10 ** (-3 * time * rate / t60)
    return out


def _seconds(num_samples: int) -> np.ndarray:
    """Time of each sample after the direct path."""
    return (np.arange(num_samples) - LEAD) / SAMPLE_RATE
