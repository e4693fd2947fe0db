"""Laws of detection: counted as the device counts, intervals around the point, scenes at the SNR that they say."""

import numpy as np
import pytest
import torch

from robustdistiller.config import EnhancementConfig, StreamingConfig, StudentConfig
from robustdistiller.errors import UserError
from robustdistiller.evaluation.detection import (
    DetectionConfig,
    PositiveScene,
    detection_curve,
    detections,
    embed,
    long_scores,
    pooled_scores,
    training_clip,
    word_bounds,
)  # fmt: skip
from robustdistiller.evaluation.task_heads import UtteranceHead
from robustdistiller.models.streaming import Chunking
from robustdistiller.models.student import build_student
from robustdistiller.models.teacher import load_teacher

LABELS = ("no", "yes", "unknown")


def scores(frames, rng, events=()):
    out = np.tile((0.01, 0.01, 0.98), (frames, 1)) + rng.uniform(0, 0.005, (frames, 3))
    for start, label, height in events:
        out[start : start + 30, label] = height
    return out


def positives(rng, heights, label=1):
    return [PositiveScene(scores(300, rng, [(100, label, h)]), 1, 90, 125) for h in heights]


def test_recall_and_false_alarms_are_those_of_the_trigger():
    rng = np.random.default_rng(0)
    # An hour with six alarms of rising height, of ten keywords eight that are above all but one of them.
    alarms = [(5000 * k, k % 2, 0.2 + 0.1 * k) for k in range(1, 7)]
    curve = detection_curve(
        positives(rng, [0.95] * 8 + [0.1] * 2), [scores(180_000, rng, alarms)], LABELS, replicates=200
    )
    told = curve.summary
    assert told["recall"] == 0.8
    assert 0.79 < told["threshold"] < 0.95  # above the fifth alarm and the sixth, 0.8: at most half of one in an hour
    column = int(np.flatnonzero(curve.thresholds == told["threshold"])[0])
    assert curve.alarms_per_hour[column] == 0
    for k in range(len(curve.thresholds)):
        events = detections(scores(1, rng), LABELS, DetectionConfig(), curve.thresholds[k])
        assert events == []
        low, high = (end[k] for end in curve.recall_interval)
        assert low <= curve.recall[k] <= high
        low, high = (end[k] for end in curve.alarms_interval)
        assert low <= curve.alarms_per_hour[k] <= high
    assert (np.diff(curve.recall) <= 0).all()
    assert set(curve.to_dict()["points"][0]) >= {"recall_low", "alarms_high"}


def test_another_keyword_or_one_too_late_is_no_hit():
    rng = np.random.default_rng(1)
    quiet = [scores(6000, rng)]
    assert detection_curve(positives(rng, [0.95] * 5, label=0), quiet, LABELS, replicates=20).summary["recall"] == 0
    late = [PositiveScene(scores(300, rng, [(200, 1, 0.95)]), 1, 90, 125)]
    assert detection_curve(late, quiet, LABELS, replicates=20).summary["recall"] == 0
    waits = DetectionConfig(tolerance=2.0)
    told = detection_curve(late, quiet, LABELS, waits, delay=0.32, replicates=20).summary
    assert told["recall"] == 1
    assert 1.5 + 0.32 <= told["latency_median"] <= 1.5 + 0.2 + 0.32  # 75 frames after the word's end, and the smoothing
    with pytest.raises(UserError, match="at least a minute"):
        detection_curve(late, [scores(100, rng)], LABELS)


def test_a_scene_has_its_snr_and_its_marks(voice):
    word = np.concatenate([np.zeros(3200), 0.3 * np.sin(np.arange(6400) / 5), np.zeros(3200)]).astype(np.float32)
    assert word_bounds(word) == (3200, 9600)
    background = voice(4.0).astype(np.float32)
    scene, begin, end = embed(word, background, 20_000, 5.0)
    assert (begin, end) == (23_200, 29_600)
    noise = scene.astype(np.float64)
    noise[20_000 : 20_000 + len(word)] -= word
    ratio = 10 * np.log10(np.square(word[3200:9600]).mean() / np.square(noise[begin:end]).mean())
    assert ratio == pytest.approx(5.0, abs=1e-3)
    with pytest.raises(UserError, match="shorter"):
        embed(word, background[:8000], 0, 5.0)


def test_heads_learn_what_is_no_keyword(voice):
    word, speech = voice(0.5).astype(np.float32), voice(5.0, 3).astype(np.float32)
    level = {}
    for kind in ("whole", "shifted", "speech", "silence"):
        clip, whole = training_clip(kind, word, speech, (0, kind))
        assert len(clip) == 16_080 and whole is (kind == "whole")
        level[kind] = float(np.square(clip).sum())
    assert level["silence"] < 1e-3 < level["shifted"] < level["whole"]


def test_long_audio_is_heard_in_pieces_as_in_one(checkpoint, voice):
    teacher = load_teacher(str(checkpoint("hubert")), precision="fp32")
    config = StudentConfig(layers=1, position_kernel=16, streaming=StreamingConfig(left_ms=200))
    student = build_student(teacher, config, EnhancementConfig(enabled=False))[0].eval()
    student.chunking = Chunking(8, 4, 10)
    torch.manual_seed(0)
    head, wave = UtteranceHead(2, 64, [3]).eval(), np.tile(voice(11.0), 5).astype(np.float32)
    whole = pooled_scores(head, student.states(torch.from_numpy(wave)[None])[0])
    assert len(whole) > 2048 + 416
    np.testing.assert_allclose(long_scores(student.states, head, wave), whole, atol=1e-5)
