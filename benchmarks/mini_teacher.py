"""Measure the mini teacher on real speech: one probe for every model, on speakers that nobody trained on.

    python benchmarks/mini_teacher.py --data DATA [--whisper MODELS/whisper-tiny.en] [--model FOLDER ...] [--out FILE.json]

`DATA` holds tasks/speech_commands_v2_testset (KS, 12 classes), tasks/ravdess (ER, 8 emotions) and tasks/timit_sample (PH,
the phone of every 20 ms frame, 39 classes). Models are frozen. Probe: states averaged over time (PH: single frames),
standardised, weighted sum with learned weights, linear. Learning rate and weight decay are chosen on a fifth of the training
speakers. KS and ER are scored on the validation speakers; PH, with 12 speakers in all, in four folds of three.
Every utterance is brought to one level. Log-mel and MFCC come with differences. Some models are measured a second time with
standard deviations over time beside the means.
Intervals: 95 %, bootstrap over speakers and three head seeds.
"""

from __future__ import annotations

from robustdistiller.process import prepare_process

prepare_process()  # before torch is imported

import argparse
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustdistiller.assets import asset
from robustdistiller.audio.manifest import Recording, read_manifest
from robustdistiller.evaluation.baselines import MFCC, LogMel
from robustdistiller.evaluation.features import StoredFeatures
from robustdistiller.evaluation.metrics import ACCURACY, Scores
from robustdistiller.evaluation.phones import TIMIT39
from robustdistiller.evaluation.statistics import Bootstrap, interval
from robustdistiller.evaluation.task_heads import (
    HeadConfig,
    UtteranceHead,
    by_answers,
    fit_averaged,
    load_head,
    predict,
)
from robustdistiller.files import write_json
from robustdistiller.models.encoder import ConvEncoder
from robustdistiller.models.teacher import Teacher, load_teacher
from robustdistiller.randomness import generator
from robustdistiller.training.mini import build_mini

States = Callable[[Tensor], Tensor]  # (1, T) → (S, F, D)
RMS = 0.06
WORDS = HeadConfig()
FRAMES = HeadConfig(batch=256, epochs=10)


def encoder_states(teacher: Teacher) -> States:
    return lambda wave: teacher.states(wave)[0][0]


def loaded(name: str) -> States:
    return encoder_states(load_teacher(name, precision="fp32"))


def feature_states(module: LogMel) -> States:
    return lambda wave: module.states(wave, torch.tensor([wave.shape[1]]))[0][0]


def level(recording: Recording) -> Tensor:
    wave = recording.load()
    wave = wave - wave.mean()
    return torch.from_numpy(wave * (RMS / max(float(wave.std()), 1e-7)))[None]


@torch.no_grad()
def averaged(states: States, recordings: Sequence[Recording], deviations: bool) -> NDArray[np.float32]:
    """One row per utterance, (N, S, D), or (N, S, 2 D) with deviations."""
    rows = []
    for recording in recordings:
        found = states(level(recording))
        parts = [found.mean(1), found.std(1)] if deviations else [found.mean(1)]
        rows.append(torch.cat(parts, -1).numpy())
    return np.stack(rows).astype(np.float32)


@torch.no_grad()
def framewise(states: States, recordings: Sequence[Recording]) -> tuple[NDArray[np.float32], list[str], list[str]]:
    """Every frame that lies in a phone: rows (ΣF, S, D), its phone, its speaker."""
    rows, phones, speakers = [], [], []
    for recording in recordings:
        found = states(level(recording)).transpose(0, 1).numpy()  # (F, S, D)
        for frame, row in enumerate(found):
            second = (320 * frame + 200) / 16_000
            name = next((p for start, end, p in recording.extra["phones"] if start <= second < end), None)
            name = TIMIT39.get(name, name) if name else name
            if name:
                rows.append(row)
                phones.append(name)
                speakers.append(recording.speaker or recording.id)
    return np.stack(rows).astype(np.float32), phones, speakers


def probe(
    rows: NDArray[np.float32],
    labels: Sequence[str],
    speakers: Sequence[str],
    test: NDArray[np.bool_],
    config: HeadConfig,
) -> NDArray[np.float64]:
    """Right (1) or wrong (0) for every test row and head seed, (R, N)."""
    names = sorted(set(labels))
    target = np.array([names.index(label) for label in labels])[:, None]
    speaker = np.array(speakers)
    known = np.unique(speaker[~test])
    chosen = generator(0, "held out").permutation(known)[: max(1, len(known) // 5)]
    choose = np.isin(speaker, chosen) & ~test
    fit = ~test & ~choose

    def part(mask: NDArray[np.bool_]) -> StoredFeatures:
        return StoredFeatures(rows[mask], np.ones(int(mask.sum()), np.int64))

    better = by_answers(part(choose), target[choose])
    heads = fit_averaged(UtteranceHead, part(fit), target[fit], [len(names)], better, config, 0)
    found = [predict(load_head(h, UtteranceHead, rows.shape[1:], [len(names)]), part(test))[:, 0] for h in heads]
    return np.stack([answer == target[test, 0] for answer in found]).astype(np.float64)


def measure(states: States, data: Path, deviations: bool) -> dict[str, tuple[float, float, float]]:
    """Accuracy in percent with its interval, of the three tasks; with deviations, of the two that average."""
    results: dict[str, tuple[float, float, float]] = {}

    def score(task: str, right: NDArray[np.float64], clusters: Sequence[str]) -> None:
        scores = Scores(ACCURACY, right, np.ones(right.shape[1]))
        found = interval(scores.value(), Bootstrap(clusters).replicate(scores, task))
        results[task] = (100 * found.value, 100 * found.low, 100 * found.high)

    for task, name in (("KS", "speech_commands_v2_testset"), ("ER", "ravdess")):
        recordings = read_manifest(data / "tasks" / name / "manifest.jsonl")
        speakers = [r.speaker or r.id for r in recordings]
        test = np.array([r.split == "valid" for r in recordings])
        rows = averaged(states, recordings, deviations)
        right = probe(rows, [r.label or "" for r in recordings], speakers, test, WORDS)
        score(task, right, [s for s, t in zip(speakers, test, strict=True) if t])
    if deviations:
        return results
    rows, phones, speakers = framewise(states, read_manifest(data / "tasks/timit_sample/manifest.jsonl"))
    order = generator(0, "folds").permutation(np.unique(speakers))
    parts, clusters = [], []
    for fold in range(4):
        test = np.isin(speakers, order[fold::4])
        parts.append(probe(rows, phones, speakers, test, FRAMES))
        clusters += [s for s, t in zip(speakers, test, strict=True) if t]
    score("PH", np.concatenate(parts, 1), clusters)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--whisper", help="a folder with, or the hub name of, Whisper tiny.en")
    parser.add_argument("--model", action="append", default=[], help="measure these folders instead of the whole table")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON too")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    subjects: dict[str, tuple[Callable[[], States], bool]] = {f: (partial(loaded, f), False) for f in options.model}
    if not subjects:
        torch.manual_seed(0)
        untrained = Teacher(ConvEncoder(build_mini(), normalize=True), precision="fp32")
        mini = partial(loaded, str(asset("mini-hubert")))
        subjects = {
            "log-mel": (lambda: feature_states(LogMel()), False),
            "log-mel, deviations too": (lambda: feature_states(LogMel()), True),
            "MFCC": (lambda: feature_states(MFCC()), False),
            "MFCC, deviations too": (lambda: feature_states(MFCC()), True),
            "random weights": (lambda: encoder_states(untrained), False),
            "mini teacher": (mini, False),
            "mini teacher, deviations too": (mini, True),
        }
        if options.whisper:
            subjects["Whisper tiny.en"] = (partial(loaded, options.whisper), False)
    table = {}
    print("| model | KS | ER | PH |\n| --- | --- | --- | --- |")
    for name, (build, deviations) in subjects.items():
        table[name] = measure(build(), options.data, deviations)
        cells = [f"{value:.1f} ({low:.1f}–{high:.1f})" for value, low, high in table[name].values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        if options.out:
            write_json(options.out, table)


if __name__ == "__main__":
    main()
