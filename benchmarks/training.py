"""Where a training step's time goes, and what it gains over a plain serial step; run by hand on a quiet machine.

    python benchmarks/training.py --size mini --groups serial scenes   # the shipped mini teacher
    python benchmarks/training.py --size base --groups serial --steps 3 --batch-seconds 62.5
    benchmarks/gpu.sh OUT                                              # all of it on a GPU

Teachers but the mini one have random weights in the published layout: speed needs no others. Groups:

measures: our step as it is, without robustness, and with one measure off: each trains a student of its own on the same batches,
which are in memory before the clock starts. They are taken in turns. Model FLOPs are those of products, convolutions and
attention in teacher and student, forward and backward, as torch counts them; their share is of the dense bf16 peak that the
maker gives for the card.

serial: ours beside the step that one writes first: batches drawn without regard to length and padded, each utterance read,
convolved (SciPy) with a response and mixed with a noise that are read from the disk inside the step, the noise resampled
(44.1 kHz, as that of UrbanSound8K), a whole teacher and the student in float32, the enhancement head over whole utterances, a
plain AdamW, memory as the C library gives and takes it. Rates count valid audio, not padding.

scenes: contamination alone, with that serial way and, where it is installed, lhotse (pip install lhotse). torch-audiomentations
is not measured: it requires torchaudio, whose mere presence breaks imports of transformers.

workers: what a process that reads costs, by part.

microbatches, compiled: ours and plain distillation with other batches, and with compiled layers.
"""

from __future__ import annotations

from robustdistiller.process import prepare_process

prepare_process()  # before torch is imported

import argparse
import ctypes
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.signal
import soundfile
import torch
from torch import Tensor

from robustdistiller.acoustics.environment import Environment
from robustdistiller.audio.batching import Crop, LengthBucketSampler
from robustdistiller.audio.io import SAMPLE_RATE, read_audio, write_audio
from robustdistiller.audio.manifest import Recording
from robustdistiller.config import (
    EnvironmentConfig,
    NoiseMix,
    ObjectivesConfig,
    StudentConfig,
    TrainingConfig,
    load_recipe,
)
from robustdistiller.models.building import build_student
from robustdistiller.models.encoder import ConvEncoder
from robustdistiller.models.precision import autocast, pick_precision
from robustdistiller.models.student import Student
from robustdistiller.models.teacher import Teacher, load_teacher
from robustdistiller.objectives.total import total_loss
from robustdistiller.process import keep_freed_memory
from robustdistiller.training.dataset import Batch, CropDataset, StepSampler, collate, load_crop, read_batches
from robustdistiller.training.optimiser import build_optimiser
from robustdistiller.training.target_cache import TargetCache, audio_key

NOISE_RATE = 44_100
PARTS = ("reading", "scene", "teacher", "student", "backward", "optimiser")
NOISY = EnvironmentConfig(noise_kinds=NoiseMix(recorded=0.7, white=0.3))
QUIET = EnvironmentConfig(clean=1, noise=0, reverb=0, both=0)


class Clock:
    """Seconds by part, one value a step; waits for a GPU at the end of every part. `now` tells the time."""

    now = staticmethod(time.perf_counter)

    def __init__(self, device: torch.device, waits: bool = True):
        self.device, self.waits = device, waits
        self.values: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = Clock.now()
        yield
        if self.waits:
            _wait(self.device)
        self.values[name].append(Clock.now() - begin)

    def median(self, name: str) -> float:
        return statistics.median(self.values[name]) if self.values[name] else 0.0

    @property
    def step(self) -> float:
        return sum(self.median(name) for name in PARTS)


def make_sound(folder: Path, count: int, longest: float) -> tuple[list[Recording], list[Recording]]:
    """Speech with the lengths of read books (2 to 17 s, most of them long), and eight noises of 4 s at 44.1 kHz."""
    random = np.random.default_rng(0)
    lengths = (17 * random.beta(4, 1.3, count)).clip(1.5, None).clip(max=longest * 1.1)
    made: dict[str, list[Recording]] = {"speech": [], "noise": []}
    for kind, number, seconds in [
        *(("speech", i, s) for i, s in enumerate(lengths)),
        *(("noise", i, 4.0) for i in range(8)),
    ]:
        path = folder / f"{kind}-{number}.flac"
        rate = SAMPLE_RATE if kind == "speech" else NOISE_RATE
        wave = 0.05 * random.standard_normal(int(seconds * rate))
        if kind == "speech":
            wave *= 1 + np.sin(np.arange(len(wave)) * 2 * np.pi * 4 / rate)
        soundfile.write(path, wave.astype(np.float32), rate)
        made[kind].append(Recording(path.stem, str(path), len(wave) / rate))
    return made["speech"], made["noise"]


class Ours:
    """The loop's step, part by part."""

    def __init__(self, teacher: Teacher, student: Student, environment: Environment, speech: list[Recording],
                 options: argparse.Namespace, device: torch.device, objectives: ObjectivesConfig):  # fmt: skip
        self.teacher, self.student, self.environment, self.device = teacher, student, environment, device
        self.objectives = objectives
        self.sampler = LengthBucketSampler(  # few lengths, as in the recipes of base size
            [r.seconds for r in speech], options.batch_seconds, options.crop_seconds, frame_multiple=8
        )
        self.dataset = CropDataset(speech, environment)
        self.precision = pick_precision("auto", device, student.encoder)
        self.optimiser: torch.optim.Optimizer = build_optimiser(student, TrainingConfig(), device)
        self.clock, self.audio, self.padded = Clock(device), 0.0, 0.0
        self.batches: list[Batch] = []

    def read(self, step: int) -> Batch:
        return collate([self.dataset[(step, crop)] for crop in self.sampler.batch(step).parts[0]])  # type: ignore[misc]

    def step(self, step: int) -> None:
        with self.clock.part("reading"):  # in a training, loader workers do this meanwhile
            batch = self.read(step)
        self.compute(batch)

    def compute(self, batch: Batch) -> None:
        part = self.clock.part
        with part("scene"):
            batch = batch.to(self.device)
            noisy = batch.contaminated(self.environment) if batch.noisy is None else batch.noisy
        with part("teacher"):
            target = self.teacher(batch.clean, batch.lengths)
        with part("student"):
            with autocast(self.device, self.precision):
                output = self.student(noisy, batch.lengths)
            loss = total_loss(self.objectives, output, target, batch.clean).total.mean()
        update(self.clock, loss, self.student, self.optimiser)
        self.audio += batch.seconds
        self.padded += batch.clean.numel() / SAMPLE_RATE


def update(clock: Clock, loss: Tensor, student: Student, optimiser: torch.optim.Optimizer) -> None:
    """The end of a step, the same for both."""
    with clock.part("backward"):
        loss.backward()
    with clock.part("optimiser"):
        torch.nn.utils.clip_grad_norm_(student.parameters(), 15.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


class SerialScenes:
    """Contamination as one writes it first, and as the paper's authors have it: one utterance after the other, the response and
    the noise read from the disk for each, the noise resampled by a windowed sinc as in torchaudio, SciPy's convolution."""

    def __init__(self, lab: Lab):
        bank, draws = lab.environments[True].rooms, np.random.default_rng(1)
        assert bank is not None
        self.noise, self.rooms = lab.noise, [lab.folder / f"room-{number}.wav" for number in range(16)]
        for path in self.rooms:
            write_audio(path, bank.load(bank.draw(draws)).samples)

    def __call__(self, clean: np.ndarray, random: np.random.Generator, recorded: float = 0.7) -> np.ndarray:
        """One of {noise, reverb, both, clean}, on one utterance (T,)."""
        kind, wave = random.integers(4), clean
        if kind in (1, 2):
            room = soundfile.read(self.rooms[random.integers(len(self.rooms))], dtype="float32")[0]
            wave = scipy.signal.convolve(wave, room)[: len(clean)]
        if kind in (0, 2):
            if random.random() < recorded:
                sound, rate = soundfile.read(self.noise[random.integers(len(self.noise))].path, dtype="float32")
                noise = np.resize(resample(torch.from_numpy(sound), rate).numpy(), len(wave))
            else:
                noise = random.standard_normal(len(wave))
            wave = wave + noise * np.sqrt(np.mean(wave**2) / np.mean(noise**2) / 10 ** (random.integers(21) / 10))
        return wave.astype(np.float32)


def resample(wave: Tensor, rate: int, zeros: int = 6, rolloff: float = 0.99) -> Tensor:
    """(T,) to 16 kHz by a Hann-windowed sinc with so many `zeros` on a side: a filter for each phase, made for every call."""
    common = math.gcd(rate, SAMPLE_RATE)
    before, after = rate // common, SAMPLE_RATE // common
    cutoff = rolloff * min(before, after)
    width = math.ceil(zeros * before / cutoff)
    place = torch.arange(-width, width + before) / before - torch.arange(after)[:, None] / after  # (after, taps)
    place = (place * cutoff).clamp(-zeros, zeros)
    filters = torch.sinc(place) * torch.cos(place * math.pi / zeros / 2).square() * cutoff / before
    padded = torch.nn.functional.pad(wave, (width, width + before))[None, None]
    phases = torch.nn.functional.conv1d(padded, filters[:, None], stride=before)[0]  # (after, steps)
    return phases.T.reshape(-1)[: math.ceil(len(wave) * after / before)]


class Serial:
    """The plain step that ours is measured against."""

    def __init__(self, lab: Lab):
        self.teacher, self.device = load(lab.options.size, lab.folder, "fp32").to(lab.device), lab.device
        self.speech, self.options, self.contaminate = lab.speech, lab.options, SerialScenes(lab)
        head = lab.robust.enhancement.model_copy(update={"window_seconds": 0.0})
        self.objectives = lab.robust.model_copy(update={"enhancement": head})
        self.student = build_student(self.teacher, StudentConfig(), head, 0)[0].to(self.device).train()
        self.optimiser = torch.optim.AdamW(self.student.parameters(), 2e-4, foreach=False)
        self.clock, self.audio, self.padded = Clock(self.device), 0.0, 0.0

    def step(self, step: int) -> None:
        part, random = self.clock.part, np.random.default_rng(step)
        with part("reading"):
            waves: list[np.ndarray] = []
            while True:
                wave = read_audio(self.speech[random.integers(len(self.speech))].path)
                wave = wave[: int(self.options.crop_seconds * SAMPLE_RATE)]
                size = max(len(w) for w in [*waves, wave])
                if waves and (len(waves) + 1) * size > self.options.batch_seconds * SAMPLE_RATE:
                    break
                waves.append(wave)
        with part("scene"):
            noisy = [self.contaminate(wave, random) for wave in waves]
        lengths = torch.tensor([len(wave) for wave in waves], device=self.device)
        clean, heard = (_padded(x).to(self.device) for x in (waves, noisy))
        with part("teacher"):
            target = self.teacher(clean, lengths)
        with part("student"):
            output = self.student(heard, lengths)
            loss = total_loss(self.objectives, output, target, clean).total.mean()
        update(self.clock, loss, self.student, self.optimiser)
        self.audio += float(lengths.sum()) / SAMPLE_RATE
        self.padded += clean.numel() / SAMPLE_RATE


def _padded(waves: list[np.ndarray]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(wave) for wave in waves], batch_first=True)


def beside_serial(lab: Lab, save: Any) -> None:
    """Our step, the serial one, and ours without robustness in turns, by part; then the loop as a training has it.

    A GPU has seen each length before the clock starts, and rooms are simulated: what a training does once.
    """
    options, device = lab.options, lab.device
    ours, unrobust, serial = lab.ours(), lab.ours(robust=False), Serial(lab)
    kinds: dict[str, Ours | Serial] = {"ours": ours, "serial": serial, "plain distillation": unrobust}
    assert ours.environment.rooms is not None
    for room in ours.environment.rooms.ids:
        ours.environment.rooms.load(room)
    before = options.steps if device.type == "cuda" else 1
    for turn in range(-before, options.steps):
        step = turn % options.steps
        for kind in kinds.values():
            if turn <= 0:
                kind.clock, kind.audio, kind.padded = Clock(device), 0.0, 0.0
            if kind is serial:
                give_memory_back()
            else:
                keep_freed_memory()  # as the command line does
            kind.step(step)
    keep_freed_memory()
    parts = {name: {part: sum(kind.clock.values[part]) / kind.audio for part in PARTS} for name, kind in kinds.items()}
    print(f"{'ms per second of speech':28}" + "".join(f"{part:>11}" for part in (*PARTS, "all", "audio s/s")))
    for name, values in parts.items():
        cells = "".join(f"{1000 * v:11.2f}" for v in (*values.values(), sum(values.values())))
        print(f"{name:28}{cells}{1 / sum(values.values()):11.1f}")
    took = {name: sum(values.values()) for name, values in parts.items()}
    numbers = {
        "step over serial": took["serial"] / took["ours"],
        "step over serial, reading in other processes": took["serial"] / (took["ours"] - parts["ours"]["reading"]),
        "cost of robustness over plain": took["ours"] / took["plain distillation"] - 1,
        "padding": 1 - ours.audio / ours.padded,
        "padding, serial": 1 - serial.audio / serial.padded,
    }
    if device.type == "cpu":
        cache = cache_rates(ours, lab.folder / "cache")
        costs = cache["seconds_per_audio_second"]
        numbers["teacher over target cache"] = costs["computed"] / costs["read"]
        numbers["target cache, MB an hour"] = cache["bytes_per_hour"] / 1e6
    save({"parts, s a second of speech": parts, **numbers})
    if options.workers:
        steps = options.steps * (10 if device.type == "cuda" else 2)
        (rate, waited, new), (plain, _, _) = (loop_rate(lab, kind, steps) for kind in (ours, unrobust))
        numbers |= {
            "read by workers: audio s/s": rate,
            "read by workers: share of the time until a batch is there": waited,
            "first step of a length, s": new,
            "read by workers: step over serial": rate * took["serial"],
            "read by workers: cost of robustness over plain": plain / rate - 1,
        }
        save(numbers)
    for name, value in numbers.items():
        print(f"{name:52}{value:12.3f}", flush=True)


def scenes(lab: Lab, save: Any) -> None:
    """Audio seconds read and contaminated a CPU second: ours, the serial way, and lhotse's where it is installed.

    All with recorded noise only, from the same files, each condition a quarter. Rooms are simulated and noises decoded before,
    which in a training is soon done.
    """
    environment = Environment.build(NOISY.model_copy(update={"noise_kinds": NoiseMix(recorded=1, white=0)}), lab.noise)
    sampler = LengthBucketSampler([r.seconds for r in lab.speech], lab.options.batch_seconds, lab.options.crop_seconds)
    dataset, serial = CropDataset(lab.speech, environment), SerialScenes(lab)
    random = np.random.default_rng(0)
    lhotse = lhotse_scenes(lab, serial.rooms) if importlib.util.find_spec("lhotse") else None

    def ours(step: int, crops: Sequence[Crop]) -> None:
        collate([dataset[(step, crop)] for crop in crops]).contaminated(environment)  # type: ignore[misc]

    ways: dict[str, Callable[[int, Sequence[Crop]], Any]] = {
        "reading alone": lambda step, crops: [load_crop(lab.speech[crop.index], crop) for crop in crops],
        "ours": ours,
        "serial": lambda step, crops: [serial(load_crop(lab.speech[crop.index], crop), random, 1.0) for crop in crops],
    }
    if lhotse is not None:
        ways["lhotse"] = lambda step, crops: [lhotse(crop, random) for crop in crops]
    took, audio = dict.fromkeys(ways, 0.0), 0.0
    for turn in range(2):
        for step in range(min(40, 3 * lab.options.steps)):
            crops = sampler.batch(step).parts[0]
            audio += turn * sum(crop.samples for crop in crops) / SAMPLE_RATE
            for name, way in ways.items():
                begin = time.process_time()
                way(step, crops)
                took[name] += turn * (time.process_time() - begin)
    reading = took.pop("reading alone")
    rates = {name: audio / (seconds - reading) for name, seconds in took.items()}
    numbers = {"reading alone: audio s a CPU second": audio / reading}
    numbers |= {f"scenes without reading speech, {name}: audio s a CPU second": rate for name, rate in rates.items()}
    numbers |= {f"scenes, times {name}": rates["ours"] / rate for name, rate in rates.items() if name != "ours"}
    save(numbers)
    for name, value in numbers.items():
        print(f"{name:60}{value:12.3f}", flush=True)


def worker_costs(lab: Lab, save: Any) -> None:
    """Processor milliseconds for a second of speech: of one loader worker, of its parts by themselves, and of the main process.

    Rooms are simulated and noises decoded before. Linux only.
    """
    environment, steps = lab.environments[True], 10 * lab.options.steps
    lengths = [recording.seconds for recording in lab.speech]
    sampler = LengthBucketSampler(lengths, lab.options.batch_seconds, lab.options.crop_seconds, frame_multiple=8)
    dataset, clock = CropDataset(lab.speech, environment), Clock(lab.device, waits=False)
    Clock.now, audio = staticmethod(time.process_time), 0.0
    for step in range(2 * steps):
        if step == steps:
            clock.values.clear()
        crops = sampler.batch(step).parts[0]
        with clock.part("reading"):
            waves = [load_crop(lab.speech[crop.index], crop) for crop in crops]
        with clock.part("drawing"):
            scenes = [environment.draw(lab.speech[crop.index].id, len(wave) / SAMPLE_RATE, crop.epoch, step)
                      for crop, wave in zip(crops, waves, strict=True)]  # fmt: skip
        with clock.part("noise"):
            noises = [environment.fetch(scene, len(wave)) for scene, wave in zip(scenes, waves, strict=True)]
        with clock.part("responses"):
            responses = [environment.responses(scene) for scene in scenes]
        with clock.part("batch"):
            collate([(*item, []) for item in zip(waves, scenes, noises, responses, strict=True)])
        audio += (step >= steps) * sum(map(len, waves)) / SAMPLE_RATE
    numbers = {f"{part}, ms a second of speech": 1000 * sum(values) / audio for part, values in clock.values.items()}
    audio, begin = 0.0, (0.0, 0.0)
    for number, batch in enumerate(read_batches(dataset, StepSampler(sampler, 0, 3 * steps), 1, torch.device("cpu"))):
        if number >= steps:
            children = multiprocessing.active_children()
            now = sum(map(_cpu_seconds, (child.pid for child in children))), time.process_time()
            begin = now if number == steps else begin
            audio += (number > steps) * batch.seconds
    numbers |= {
        "one worker": 1000 * (now[0] - begin[0]) / audio,
        "main process, rendering": 1000 * (now[1] - begin[1]) / audio,
    }
    save(numbers)
    for name, value in numbers.items():
        print(f"{name:60}{value:12.3f}", flush=True)


def _cpu_seconds(process: int | None) -> float:
    """User and system time of a process."""
    user, system = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def lhotse_scenes(lab: Lab, rooms: list[Path]) -> Callable[[Crop, np.random.Generator], np.ndarray]:
    """One utterance read and contaminated with lhotse's cuts: noise that is repeated where it is short, and responses."""
    import lhotse

    def cuts(paths: list[str]) -> list[Any]:
        return [lhotse.Recording.from_file(path).to_cut() for path in paths]

    speech, noises = (cuts([recording.path for recording in some]) for some in (lab.speech, lab.noise))
    noises = [noise.resample(SAMPLE_RATE) for noise in noises]
    responses = [cut.recording for cut in cuts([str(path) for path in rooms])]

    def contaminate(crop: Crop, random: np.random.Generator) -> np.ndarray:
        kind = random.integers(4)
        cut = speech[crop.index]
        seconds = min(crop.samples / SAMPLE_RATE, cut.duration - crop.start / SAMPLE_RATE)
        cut = cut.truncate(offset=crop.start / SAMPLE_RATE, duration=seconds)
        if kind in (1, 2):
            cut = cut.reverb_rir(responses[random.integers(len(responses))])
        if kind in (0, 2):
            noise = noises[random.integers(len(noises))]
            whole = noise
            while whole.duration < cut.duration:
                whole = whole.append(noise)
            cut = cut.mix(whole.truncate(duration=cut.duration), snr=int(random.integers(21)))
        return cut.load_audio()[0]  # type: ignore[no-any-return]

    return contaminate


def cache_rates(ours: Ours, folder: Path) -> dict[str, Any]:
    """Seconds a second of speech costs to compute and to read, after filling a cache with three batches."""
    cache = TargetCache(folder, 10, ours.teacher, ours.device)
    for _ in range(2):
        for step in range(3):
            batch = ours.read(step).to(ours.device)
            rows = zip(batch.clean.cpu(), batch.lengths.tolist(), strict=True)
            cache(batch.clean, batch.lengths, [audio_key(wave[:length].numpy()) for wave, length in rows])
    return cache.report()


PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}  # dense bf16 FLOP/s


class Lab:
    """What variants share: recordings, teachers by precision and attention, a new student's weights, batches by size."""

    def __init__(self, options: argparse.Namespace, folder: Path, speech: list[Recording], noise: list[Recording],
                 device: torch.device):  # fmt: skip
        self.options, self.folder, self.speech, self.noise, self.device = options, folder, speech, noise, device
        self.robust, self.plain = objectives(options.size)
        self.environments = {
            robust: Environment.build(NOISY if robust else QUIET, noise=noise, speech=speech)
            for robust in (True, False)
        }
        self.original = load(options.size, folder, "auto").stop_at_highest()
        self.teachers: dict[tuple[str, str, bool], Teacher] = {}
        self.batches: dict[tuple[bool, float], list[Batch]] = {}

    def teacher(self, precision: str, attention: str, compile: bool) -> Teacher:
        if (precision, attention, compile) not in self.teachers:
            teacher = load(self.options.size, self.folder, precision).stop_at_highest().settle(self.device)
            if attention:
                teacher.encoder.model.set_attn_implementation(attention)  # type: ignore[union-attr]
            if compile:
                assert isinstance(teacher.encoder, ConvEncoder)
                teacher.encoder.compile_layers()
            self.teachers[precision, attention, compile] = teacher
        return self.teachers[precision, attention, compile]

    def ours(self, robust: bool = True, precision: str = "auto", attention: str = "", fused: bool = True,
             compile: bool = False, seconds: float = 0.0, window: float | None = None) -> Ours:  # fmt: skip
        """Our step with one measure off or one more on, and batches of `seconds` that are in memory."""
        loss = self.robust if robust else self.plain
        if window is not None:
            head = loss.enhancement.model_copy(update={"window_seconds": window})
            loss = loss.model_copy(update={"enhancement": head})
        teacher = self.teacher(precision, attention, compile)
        student = build_student(self.original, StudentConfig(), loss.enhancement, 0)[0].to(self.device).train()
        if attention:
            student.encoder.model.set_attn_implementation(attention)
        if compile:
            student.encoder.compile_layers()
        seconds = seconds or self.options.batch_seconds
        few = argparse.Namespace(**{**vars(self.options), "batch_seconds": seconds})
        ours = Ours(teacher, student, self.environments[robust], self.speech, few, self.device, loss)
        ours.clock.waits = False
        ours.precision = pick_precision(precision, self.device, student.encoder)
        if not fused:
            ours.optimiser = torch.optim.AdamW(student.parameters(), 2e-4, fused=False, foreach=False)
        if (robust, seconds) not in self.batches:
            batches = [ours.read(step) for step in range(2)]
            self.batches[robust, seconds] = [b.pin_memory() if self.device.type == "cuda" else b for b in batches]
        ours.batches = self.batches[robust, seconds]
        return ours


def variants(group: str, options: argparse.Namespace) -> Iterator[dict[str, dict[str, Any]]]:
    """What is taken in turns, by name: arguments of `Lab.ours`."""
    if group == "measures":
        cases: dict[str, dict[str, Any]] = {
            "ours": {},
            "plain distillation": {"robust": False},
            "enhancement over whole utterances": {"window": 0.0},
            "fp32": {"precision": "fp32"},
            "attention without SDPA": {"attention": "eager"},
            "AdamW not fused": {"fused": False},
        }
        yield {name: case for name, case in cases.items() if not options.cases or name in options.cases}
    if group == "microbatches":
        for seconds in options.microbatches:
            kinds = {"ours": True, "plain distillation": False}
            yield {f"{kind}, {seconds:g} s": {"robust": robust, "seconds": seconds} for kind, robust in kinds.items()}
    if group == "compiled":
        yield {"ours again": {}, "compiled": {"compile": True},
               "plain distillation, compiled": {"robust": False, "compile": True}}  # fmt: skip


def in_turns(lab: Lab, cases: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rates, memory and FLOPs of a group of variants, which take `rounds` turns of `steps` steps.

    In turns, so that what is measured first is not the worse for it.
    """
    options, device = lab.options, lab.device
    made: dict[str, Ours] = {}
    times: dict[str, list[float]] = defaultdict(list)
    numbers: dict[str, dict[str, Any]] = defaultdict(dict)
    for turn in range(options.rounds + 1):
        for name, case in cases.items():
            if "failed" in numbers[name]:
                continue
            try:
                if turn == 0:
                    made[name] = lab.ours(**case)
                if device.type == "cuda":
                    before = torch.cuda.memory_allocated()
                    torch.cuda.reset_peak_memory_stats()
                _wait(device)
                begin = time.perf_counter()
                for step in range(2 if turn == 0 else options.steps):
                    made[name].compute(made[name].batches[step % 2])
                _wait(device)
                took = time.perf_counter() - begin
            except (RuntimeError, torch.OutOfMemoryError) as error:
                numbers[name] = {"failed": str(error).splitlines()[0][:200]}
                made.pop(name, None)
                continue
            if turn == 0:
                numbers[name]["first two steps, s"] = round(took, 2)
                continue
            times[name].append(1000 * took / options.steps)
            if device.type == "cuda":
                above = torch.cuda.max_memory_allocated() - before + _bytes(made[name])
                numbers[name]["peak memory, GB"] = round(above / 1e9, 2)
    for name, ours in made.items():
        took, audio = statistics.median(times[name]), statistics.mean(batch.seconds for batch in ours.batches)
        numbers[name]["audio hours an hour"] = round(1000 * audio / took, 1)
        numbers[name]["ms a step"] = round(took, 2)
        numbers[name]["ms a step, lowest and highest"] = [round(min(times[name]), 2), round(max(times[name]), 2)]
        if name in ("ours", "plain distillation"):
            flops = _flops(ours, ours.batches[0])
            numbers[name]["model TFLOP/s"] = round(flops / took / 1e9, 3)
            card = torch.cuda.get_device_name() if device.type == "cuda" else ""
            if peak := next((value for known, value in PEAKS.items() if known in card), None):
                numbers[name]["share of peak"] = round(flops / took / 1e-3 / peak, 4)
            ours.clock = Clock(device)
            for step in range(4):
                ours.compute(ours.batches[step % 2])
            parts = {part: ours.clock.median(part) for part in PARTS[1:]}
            numbers[name]["ms, each part waited for"] = {part: round(1000 * value, 2) for part, value in parts.items()}
            if device.type == "cuda":
                numbers[name]["synchronisations a step"] = _synchronisations(ours, ours.batches[0])
        yield name, numbers[name]
        if name == "ours" and options.profile:
            profile(ours, options.profile)
    yield from ((name, found) for name, found in numbers.items() if "failed" in found)


def profile(ours: Ours, path: Path) -> None:
    """A trace of one step for chrome://tracing, and beside it a table of the operations that take longest."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] * (ours.device.type == "cuda")
    ours.clock = Clock(ours.device, waits=False)
    with torch.profiler.profile(activities=activities) as trace:
        ours.compute(ours.batches[0])
        _wait(ours.device)
    trace.export_chrome_trace(str(path))
    kind = "device" if ours.device.type == "cuda" else "cpu"
    table = trace.key_averages().table(f"self_{kind}_time_total", row_limit=40, max_name_column_width=80)
    path.with_suffix(".txt").write_text(table)


def loop_rate(lab: Lab, ours: Ours, steps: int) -> tuple[float, float, float]:
    """The loop as a training has it: crops read by workers, rendered one batch ahead of the computation.

    Audio seconds a second, the share of the time that went by until there was a batch on the device, and the median seconds of
    the first step of a length, which on a GPU all have taken before.
    """
    ours.clock, new = Clock(lab.device, waits=False), []
    if lab.device.type == "cuda":
        for step in {
            max(part[0].samples for part in ours.sampler.batch(k).parts): k for k in range(steps + 2)
        }.values():
            batch, begin = ours.read(step), time.perf_counter()
            ours.compute(batch)
            _wait(lab.device)
            new.append(time.perf_counter() - begin)
    audio, waited, begin = 0.0, 0.0, 0.0
    batches = iter(read_batches(ours.dataset, StepSampler(ours.sampler, 0, steps + 2), lab.options.workers, lab.device))
    for number in range(steps + 2):
        if number == 2:
            _wait(lab.device)
            begin = time.perf_counter()
        asked = time.perf_counter()
        batch = next(batches)
        waited += (time.perf_counter() - asked) * (number > 1)
        ours.compute(batch)
        audio += batch.seconds * (number > 1)
    _wait(lab.device)
    took = time.perf_counter() - begin
    return audio / took, waited / took, statistics.median(new or [math.nan])


def _bytes(ours: Ours) -> int:
    """Of the weights of both networks and the optimiser's state."""
    state = [value for values in ours.optimiser.state.values() for value in values.values()]
    tensors = [*ours.teacher.parameters(), *ours.student.parameters(), *(x for x in state if isinstance(x, Tensor))]
    return sum(tensor.nbytes for tensor in tensors)


def _flops(ours: Ours, batch: Batch) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        ours.compute(batch)
    return int(counter.get_total_flops())


def _synchronisations(ours: Ours, batch: Batch) -> dict[str, int]:
    """Where the host waits for the GPU within a step, by line of code, and how often."""
    ours.clock = Clock(ours.device, waits=False)
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ours.compute(batch)
    torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(w.filename).name}:{w.lineno}" for w in seen if "called a synchronizing" in str(w.message)]
    return {place: places.count(place) for place in dict.fromkeys(places)}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def give_memory_back() -> None:
    """The bounds that the GNU C library settles on by itself: what `keep_freed_memory` changes, for the serial step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and sys.platform.startswith("linux"):
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
        mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD


def objectives(size: str) -> tuple[ObjectivesConfig, ObjectivesConfig]:
    """The losses of robust and of plain distillation in the recipes for that size."""
    names = (
        ("mini-robust", "mini-distilhubert")
        if size in ("tiny", "mini")
        else ("robust-hubert-base", "distilhubert-base")
    )
    robust, plain = (load_recipe(name).objectives for name in names)
    return robust, plain.model_copy(update={"correlation": robust.correlation})


def load(size: str, folder: Path, precision: str) -> Teacher:
    if size == "mini":
        return load_teacher("mini-hubert", (4, 8, 12), precision)
    from transformers import HubertConfig, HubertModel

    shapes: dict[str, dict[str, Any]] = {
        "tiny": dict(hidden_size=64, num_hidden_layers=12, num_attention_heads=4, intermediate_size=96, conv_dim=(32,) * 7,
                     num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=4),
        "base": {},
        "large": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
                      do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True),
    }  # fmt: skip
    if not (folder / "teacher").is_dir():
        torch.manual_seed(0)
        HubertModel(HubertConfig(**shapes[size])).save_pretrained(folder / "teacher")
        (folder / "teacher" / "preprocessor_config.json").write_text('{"do_normalize": false, "sampling_rate": 16000}')
    return load_teacher(str(folder / "teacher"), (8, 16, 24) if size == "large" else (4, 8, 12), precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "mini", "base", "large"), default="mini")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--groups", nargs="*", default=["measures", "serial", "scenes"],
                        choices=("measures", "serial", "scenes", "workers", "microbatches", "compiled"))  # fmt: skip
    parser.add_argument("--microbatches", type=float, nargs="*", default=[], help="seconds, for the scaling over them")
    parser.add_argument("--cases", nargs="*", default=[], help="only these of the measures, by name")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each variant")
    parser.add_argument("--workers", type=int, default=0, help="also measure the loop with so many loader workers")
    parser.add_argument("--profile", type=Path, help="leave a trace of one step here (chrome://tracing)")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each kind, after one that is not")
    parser.add_argument("--batch-seconds", type=float, default=32.0)
    parser.add_argument("--crop-seconds", type=float, default=15.625)
    parser.add_argument("--recordings", type=int, default=200)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument(
        "--cpu-seconds", action="store_true", help="serial: seconds of processor time, on a busy machine"
    )
    options = parser.parse_args()
    if options.cpu_seconds:
        Clock.now = staticmethod(time.process_time)
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if options.device == "auto" else options.device)
    machine = _machine(device)
    known: dict[str, Any] = {"machine": machine, "options": {k: str(v) for k, v in vars(options).items()}}

    def save(more: dict[str, Any]) -> None:
        known.update(more)
        if options.json:
            options.json.write_text(json.dumps(known, indent=2) + "\n")

    with tempfile.TemporaryDirectory() as name:
        speech, noise = make_sound(Path(name), options.recordings, options.crop_seconds)
        lab = Lab(options, Path(name), speech, noise, device)
        print(f"{options.size}, {options.batch_seconds:g} s a batch, {options.steps} steps; {machine}")
        alone = {"serial": beside_serial, "scenes": scenes, "workers": worker_costs}
        for group in options.groups:
            if group in alone:
                alone[group](lab, save)
                continue
            for cases in variants(group, options):
                for variant, numbers in in_turns(lab, cases):
                    print(f"{variant:36}", numbers, flush=True)
                    save({variant: numbers})


def _machine(device: torch.device) -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        model = next((x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if "model name" in x), model)
    gpu = f", {torch.cuda.get_device_name()}" if device.type == "cuda" else ""
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}{gpu}"


if __name__ == "__main__":
    main()
