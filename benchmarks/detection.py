"""A keyword detector judged by its false alarms: recall at 0.5 an hour, DET curves, latency from the end of the word.

    python benchmarks/detection.py --student RUN/student@160+160 --keywords MANIFEST --negatives SOURCE --out FOLDER \
        [--noise SOURCE] [--rooms SOURCE] [--snr 10 0] [--positives 200]

MANIFEST holds recordings of one word each with `label`, `speaker` and `split` (train, valid, and test if there is one);
SOURCE is speech without these words. Half of its speakers (of its recordings, with fewer than four) train the head, the
others are the background of the positives, and the negatives. The head learns from whole words anywhere in a second, from
words cut off, from other speech and from silence (the last three are `_unknown_`). Positives are set into running speech at
20 dB ("clean") and at every --snr, with --noise into that noise instead, and with --rooms into a room as well.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from scipy.signal import fftconvolve

from robustdistiller.audio.io import SAMPLE_RATE
from robustdistiller.audio.manifest import Recording, read_manifest
from robustdistiller.audio.prepare import prepare_all
from robustdistiller.evaluation.detection import (
    BACKGROUND,
    Curve,
    PositiveScene,
    detection_curve,
    embed,
    long_scores,
    training_clip,
)  # fmt: skip
from robustdistiller.evaluation.evaluated import open_models
from robustdistiller.evaluation.features import StoredFeatures
from robustdistiller.evaluation.probes import save_heads
from robustdistiller.evaluation.task_heads import HeadConfig, UtteranceHead, fit_utterance_heads
from robustdistiller.files import write_json
from robustdistiller.models.student import Student, load_student
from robustdistiller.randomness import fraction, generator

UNKNOWN = "_unknown_"
SCENE_SECONDS, WORD_AT = 6.0, 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True, help="FOLDER@CHUNK+LOOKAHEAD, or a folder for offline windows")
    parser.add_argument("--keywords", required=True)
    parser.add_argument("--negatives", required=True, action="append")
    parser.add_argument("--noise", action="append", default=[])
    parser.add_argument("--rooms", action="append", default=[])
    parser.add_argument("--snr", type=float, nargs="*", default=[10.0, 0.0])
    parser.add_argument("--positives", type=int, default=200)
    parser.add_argument("--clips", type=int, default=4000, help="seconds that the head learns from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    student = load_student(options.student)
    words = read_manifest(options.keywords)
    known = [r for r in words if r.label not in BACKGROUND]
    parts = {r.split for r in known}
    test_split = "test" if "test" in parts else "valid"
    labels = (*sorted({str(r.label) for r in known}), UNKNOWN)
    others = prepare_all(options.negatives, "speech").recordings
    mine: dict[bool, list[Recording]] = {True: [], False: []}  # by whether they train the head
    few = len({r.speaker for r in others}) < 4
    for recording in others:
        mine[fraction("detection", str(recording.id if few else recording.speaker)) < 0.5].append(recording)
    train = [r for r in known if r.split != test_split]
    head = train_head(student, train, [r for r in words if r.label in BACKGROUND and r.split != test_split],
                      mine[True], labels, options)  # fmt: skip

    running = np.concatenate([r.load() for r in mine[False]])
    negatives = [long_scores(student.states, head, running)]
    print(f"{len(running) / SAMPLE_RATE / 3600:.2f} h of negatives", flush=True)
    behind = running
    if options.noise:
        behind = np.concatenate([r.load() for r in prepare_all(options.noise, "noise").recordings])
    rooms = prepare_all(options.rooms, "rooms").recordings if options.rooms else []
    test = [r for r in known if r.split == test_split]
    order = generator(options.seed, "positives").permutation(len(test))[: options.positives]
    chosen = [test[int(k)] for k in order]
    rows = {}
    conditions = [("clean", 20.0, False), *((f"{snr:g} dB", snr, False) for snr in options.snr)]
    conditions += [("rooms", 20.0, True)] if rooms else []
    delay = student.chunking.latency if student.chunking is not None else 0.0
    for name, snr, in_room in conditions:
        scenes, beneath = [], running if name == "clean" else behind
        for number, word in enumerate(chosen):
            room = rooms[number % len(rooms)].load() if in_room else None
            scenes.append(positive(student, head, word, beneath, snr, room, labels, options.seed))
        rows[name] = detection_curve(scenes, negatives, labels, delay=delay, seed=options.seed)
        print(name, rows[name].summary, flush=True)
    write(options.out, rows)


def train_head(
    student: Student, words: list[Recording], more: list[Recording], speech: list[Recording], labels: tuple[str, ...],
    options: argparse.Namespace,
) -> UtteranceHead:  # fmt: skip
    """A head that knows running speech, silence and parts of words as `UNKNOWN`; written beside the results."""
    flow = np.concatenate([r.load() for r in speech])
    kinds = ("whole", "whole", "shifted", "speech", "speech", "silence")
    rows, targets = [], []
    for k in range(options.clips):
        rng = generator(options.seed, "detection head", k)
        kind = kinds[k % len(kinds)]
        if kind == "speech" and more and k % 12 > 5:
            other = more[int(rng.integers(len(more)))].load()
            clip, whole = training_clip("whole", other, flow, (options.seed, k))
            whole, label = False, UNKNOWN
        else:
            word = words[int(rng.integers(len(words)))]
            clip, whole = training_clip(kind, word.load(), flow, (options.seed, k))
            label = str(word.label) if whole else UNKNOWN
        if k % 2 and kind == "whole":  # a word in running speech
            at = int(rng.integers(len(flow) - len(clip)))
            beneath = flow[at : at + len(clip)]
            level = np.sqrt(np.square(clip).mean() / max(np.square(beneath).mean(), 1e-12))
            clip = clip + level * 10 ** (-rng.uniform(5, 20) / 20) * beneath
        states, _ = student.states(torch.from_numpy(clip.astype(np.float32))[None])
        rows.append(states[0].mean(1).numpy())
        targets.append(labels.index(label))
    held = np.arange(len(rows)) % 8 == 7
    stacked, answers = np.stack(rows).astype(np.float32), np.array(targets)[:, None]
    parts = [StoredFeatures(stacked[m], np.ones(int(m.sum()), np.int64)) for m in (~held, held)]
    (trained, *_) = fit_utterance_heads(
        parts[0], answers[~held], parts[1], answers[held], [len(labels)], HeadConfig(seeds=1), options.seed
    )
    head = UtteranceHead(stacked.shape[1], stacked.shape[2], [len(labels)]).eval()
    head.load_state_dict(trained.state)
    (model,) = open_models([options.student])
    about = {"task": "detection", "kind": "classification", "slots": ["label"], "classes": [list(labels)],
             "states": list(model.state_names), "level_dbfs": None, "model": model.digest}  # fmt: skip
    save_heads(options.out / "head.safetensors", [trained], "detection", about)
    print(f"head: {trained.validation:.1%} of held-out seconds right", flush=True)
    return head


def positive(
    student: Student, head: UtteranceHead, word: Recording, behind: np.ndarray, snr: float, room: np.ndarray | None,
    labels: tuple[str, ...], seed: int,
) -> PositiveScene:  # fmt: skip
    """A scene of `SCENE_SECONDS` with the word in its middle, scored. room: an impulse response (T,), or None"""
    size, at = int(SCENE_SECONDS * SAMPLE_RATE), int(WORD_AT * SAMPLE_RATE)
    start = int(generator(seed, "scene", word.id).integers(max(1, len(behind) - size)))
    clip = word.load()[: size - at - SAMPLE_RATE]
    scene, begin, end = embed(clip, np.resize(behind[start : start + size], size), at, snr)
    if room is not None:  # the direct sound stays where it was, at the level that it had
        direct = int(np.abs(room).argmax())
        scene = (fftconvolve(scene, room)[direct : direct + size] / np.abs(room).max()).astype(np.float32)
    frames = long_scores(student.states, head, scene)
    return PositiveScene(frames, labels.index(str(word.label)), begin // 320, end // 320)


def write(out: Path, rows: dict[str, Curve]) -> None:
    """JSON, CSV and a picture."""
    write_json(out / "detection.json", {name: curve.to_dict() for name, curve in rows.items()})
    with (out / "detection.csv").open("w", newline="") as file:
        table = csv.writer(file)
        for number, (name, curve) in enumerate(rows.items()):
            points = curve.to_dict()["points"]
            if not number:
                table.writerow(["condition", *points[0]])
            table.writerows([name, *point.values()] for point in points)
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, curve in rows.items():
        axes.plot(curve.alarms_per_hour, 100 * (1 - curve.recall), label=name)
        axes.fill_between(
            curve.alarms_per_hour, *(100 * (1 - end) for end in curve.recall_interval), alpha=0.15, linewidth=0
        )
    axes.set(xscale="symlog", xlabel="false alarms an hour", ylabel="missed keywords, per cent", ylim=(0, 100))
    axes.axvline(0.5, color="grey", linewidth=0.5)
    axes.legend()
    figure.savefig(out / "detection.svg")


if __name__ == "__main__":
    main()
