"""Laws of detection: counted as the device counts, intervals around the point, words where and as loud as a scene says."""

import base64
import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from robustdistiller.audio.io import write_audio
from robustdistiller.audio.manifest import Recording, write_manifest
from robustdistiller.errors import UserError
from robustdistiller.evaluation import scenes
from robustdistiller.evaluation.benchmark import Settings, evaluate
from robustdistiller.evaluation.false_alarms import (
    FRAME_RATE,
    THRESHOLDS,
    DetectionHead,
    alarms,
    detection_curves,
    frame_scores,
    hits,
    label_windows,
    part_means,
)
from robustdistiller.evaluation.features import StoredFeatures
from robustdistiller.evaluation.metrics import RECALL, DetectionScores
from robustdistiller.evaluation.probes import DetectionProbe
from robustdistiller.evaluation.statistics import Bootstrap, interval
from robustdistiller.evaluation.task_file import DetectionConfig, TaskConfig
from robustdistiller.evaluation.task_heads import HeadConfig, UtteranceHead, by_answers, fit_averaged
from robustdistiller.evaluation.tasks import build_task
from robustdistiller.report import write_page
from robustdistiller.runtime import Trigger

LABELS, CONFIG = ("no", "yes", "unknown"), DetectionConfig()


def scores(frames, rng, events=()):
    out = np.tile((0.01, 0.01, 0.98), (frames, 1)) + rng.uniform(0, 0.005, (frames, 3))
    for start, label, height in events:
        out[start : start + 30, label] = height
    return out


def summed(keywords, stretches, seconds=3600.0):
    """`DetectionScores` of one head: scores of scenes with "yes" in frames 90 to 125, and of stretches without any."""
    none, ends = [np.nan] * len(THRESHOLDS), (90 / FRAME_RATE, 125 / FRAME_RATE)
    late = [[np.nan if x is None else x for x in hits(s, LABELS, "yes", ends, CONFIG)] for s in keywords]
    counted = [[0] * len(THRESHOLDS)] * len(keywords) + [alarms(s, LABELS, CONFIG) for s in stretches]
    length = [0.0] * len(keywords) + [seconds] * len(stretches)
    return DetectionScores(
        RECALL,
        np.array([late + [none] * len(stretches)]),
        np.array([counted], float),
        np.array(length),
        THRESHOLDS,
        0.5,
    )


def curve(found):
    bootstrap = Bootstrap([str(k) for k in range(len(found.seconds))], 200)
    return detection_curves(found, bootstrap)[0]


def test_a_perfect_detector_finds_all_without_a_false_alarm():
    rng = np.random.default_rng(0)
    found = summed([scores(300, rng, [(100, 1, 1.0)]) for _ in range(5)], [scores(5000, rng)] * 3)
    assert found.value() == 1 and curve(found)["late"][0] <= 0.3
    assert all(point["recall"] == 1 for point in curve(found)["points"])
    assert any(point["alarms"] == 0 for point in curve(found)["points"])


def test_recall_is_told_where_false_alarms_are_allowed():
    rng = np.random.default_rng(0)
    events = [(5000 * k, k % 2, 0.2 + 0.1 * k) for k in range(1, 7)]  # six alarms of rising height in an hour
    keywords = [scores(300, rng, [(100, 1, height)]) for height in [0.95] * 8 + [0.1] * 2]
    found = summed(keywords, [scores(180_000, rng, events)])
    told = curve(found)
    assert found.value() == 0.8
    assert 0.79 < told["threshold"] < 0.95  # above the sixth alarm, 0.8: half of one is allowed
    for point in told["points"]:
        for name in ("recall", "alarms"):
            assert point[f"{name}_low"] <= point[name] <= point[f"{name}_high"]
    assert summed(keywords, [scores(180_000, rng, [(9000, 0, 1.0)])]).value() == 0  # no threshold is high enough


def test_another_keyword_or_one_too_late_is_missed():
    rng = np.random.default_rng(1)
    assert summed([scores(300, rng, [(100, 0, 0.95)])], [scores(6000, rng)]).value() == 0
    late = scores(300, rng, [(200, 1, 0.95)])
    assert summed([late], [scores(6000, rng)]).value() == 0
    ends = (90 / FRAME_RATE, 125 / FRAME_RATE)
    waited = hits(late, LABELS, "yes", ends, DetectionConfig(tolerance=2.0))[5]
    assert 1.5 <= waited <= 1.7  # 75 frames after the word's end, and the smoothing


def test_alarms_fall_with_the_threshold_and_are_those_of_the_device():
    rng = np.random.default_rng(2)
    for _ in range(20):
        walk = np.cumsum(rng.standard_normal((600, 3)), 0) / 3
        found = np.exp(walk) / np.exp(walk).sum(1, keepdims=True)
        counts = alarms(found, LABELS, CONFIG)
        assert (np.diff(counts) <= 0).all()
        for k in (0, 20, 50):
            device = Trigger(LABELS, THRESHOLDS[k], 10, 50, CONFIG.background)
            assert counts[k] == sum(len(device(part)) for part in np.array_split(found, 7))


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Each keyword is found by a coin of known recall: 95 of 100 intervals hold it, give or take what chance allows."""
    rng, held, count = np.random.default_rng(3), 0, 120
    for k in range(count):
        late = np.where(rng.random(80) < 0.7, 0.1, np.nan)
        late = np.concatenate([late, np.full(20, np.nan)])[None, :, None]
        found = DetectionScores(
            RECALL, late, np.zeros((1, 100, 1)), np.repeat([0.0, 60.0], [80, 20]), THRESHOLDS[:1], 0.5
        )
        bootstrap = Bootstrap([str(n) for n in range(100)], 400, seed=k)
        told = interval(found.value(), bootstrap.replicate(found))
        held += told.low <= 0.7 <= told.high
    assert held >= binom.ppf(0.001, count, 0.93)


@pytest.fixture
def speech(tmp_path, voice):
    """Running speech of five speakers, and a word with silence around it."""
    found = []
    for k in range(5):
        for part in range(3):
            path = tmp_path / f"{k}-{part}.wav"
            write_audio(path, voice(9.0, 10 * k + part).astype(np.float32))
            found.append(Recording(f"{k}-{part}", str(path), 9.0, speaker=f"reader {k}"))
    word = np.concatenate([np.zeros(3200), 0.3 * np.sin(np.arange(6400) / 5), np.zeros(3200)]).astype(np.float32)
    write_audio(tmp_path / "word.wav", word)
    return found, Recording("word", str(tmp_path / "word.wav"), 0.8, speaker="anna", label="yes")


def test_a_word_is_where_its_scene_says_and_as_loud_as_the_speech_around_it(speech):
    flow, word = speech
    (scene, label), (_, _) = scenes.keyword_scenes([(word, "yes"), (word, "no")], flow)
    wave, (begin, end) = scene.load(), scene.marks()
    assert label == "yes" and len(wave) == 16_000 * scenes.SCENE_SECONDS
    assert end - begin == pytest.approx(0.4)
    inside = wave[round(begin * 16_000) : round(end * 16_000)].astype(np.float64)
    sine = np.sin(np.arange(len(inside)) / 5)
    assert np.corrcoef(inside, sine)[0, 1] > 0.999  # the word alone, from its first sample to its last
    around = np.concatenate([wave[: round(begin * 16_000)], wave[round(end * 16_000) :]])
    loud = np.sort(np.square(around[: len(around) // 320 * 320].reshape(-1, 320)).mean(1))
    assert 10 * np.log10(np.square(inside).mean() / loud[len(loud) // 2 :].mean()) == pytest.approx(0, abs=1.5)
    np.testing.assert_array_equal(scene.load(), wave)  # the same whenever it is read
    np.testing.assert_array_equal(scene.load(1.0, 2.0), wave[16_000:48_000])


def test_stretches_are_all_running_speech_once(speech):
    flow, _ = speech
    found = scenes.stretches(flow)
    assert len(found) == int(9 * len(flow) / scenes.STRETCH_SECONDS)
    joined = np.concatenate([r.load() for r in flow])
    mine = np.concatenate([stretch.load() for stretch in found])
    np.testing.assert_allclose(mine, joined[: len(mine)], atol=1e-3)  # but for what stands for silence
    assert len({stretch.cluster for stretch in found}) == len(found)


def test_a_head_learns_from_scenes_of_words_in_speech_and_in_silence(speech):
    flow, word = speech
    (around, label), (silent, same) = scenes.keyword_scenes([(word, "yes")], flow, silent=True)
    assert label == same == "yes" and around.id != silent.id and around.marks() == silent.marks()
    begin = round(16_000 * silent.marks()[0])
    assert np.abs(silent.load()[:begin]).max() < 1e-2 < np.abs(around.load()[:begin]).max()
    told = label_windows(*silent.marks(), 299)
    said = [frame / FRAME_RATE for frame, is_said in told if is_said]
    other = [frame / FRAME_RATE for frame, is_said in told if not is_said]
    begin, end = silent.marks()
    assert said and all(end <= time <= end + 0.3 for time in said)
    # Before, and of the word less than half; or long after it.
    assert {time < begin for time in other} == {True, False}
    assert all(time < (begin + end) / 2 or time > end + 0.6 for time in other)
    assert min(other) >= 0.98  # a whole second


def test_a_head_over_frames_reads_the_window_that_ends_with_each():
    states = torch.randn(1, 3, 90, 4)
    for head in (DetectionHead(3, 4, [3]).eval(), UtteranceHead(3, 4, [3]).eval()):
        running = frame_scores(head, states)
        assert running.shape == (90, 3)
        for end in (50, 71, 90):
            read = states[:, :, end - 50 : end].mean(2)
            if isinstance(head, DetectionHead):
                read = torch.from_numpy(part_means(states[0].transpose(0, 1).numpy(), [end - 1]))
                torch.testing.assert_close(read[0, 2], states[0, :, end - 30 : end - 20].mean(1))
            torch.testing.assert_close(running[end - 1], head(read)[0][0].softmax(-1))


def test_a_detection_head_hears_the_order_of_sounds():
    """Two words of the same sounds, one the other backwards: their means are equal."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=(400, 1))
    rise = np.linspace(-1, 1, 5)[None, :, None, None] * np.where(labels, 1, -1)[..., None, None]
    rows = (rise + 0.3 * rng.standard_normal((400, 5, 2, 8))).astype(np.float32)
    parts = [(StoredFeatures(rows[k], np.ones(200, np.int64)), labels[k]) for k in (slice(200), slice(200, 400))]
    config = HeadConfig(learning_rates=(3e-3,), weight_decays=(1e-2,), steps=60, seeds=1)
    (trained,) = fit_averaged(DetectionHead, *parts[0], [2], by_answers(*parts[1]), config, 0)
    assert trained.validation > 0.95


def test_a_single_wake_word_needs_no_other_words(speech, tmp_path):
    flow, word = speech
    parts = ("train", "valid", "test")
    said = [replace(word, id=f"word {k}", speaker=f"anna {k}", split=parts[k % 3]) for k in range(9)]
    write_manifest(tmp_path / "words.jsonl", said)
    write_manifest(tmp_path / "flow.jsonl", flow)
    config = TaskConfig(name="wake", kind="detection", source=str(tmp_path / "words.jsonl"),
                        negatives={"source": str(tmp_path / "flow.jsonl")})  # fmt: skip
    task = build_task(config, tmp_path, allow_overlap=True)
    assert task.classes == ((scenes.UNKNOWN, "yes"),)
    rows = np.random.default_rng(0).standard_normal((299 * len(task.train), 1, 4)).astype(np.float32)
    stored = StoredFeatures(rows, np.full(len(task.train), 299))
    windows, targets = DetectionProbe(task, HeadConfig(), 0)._windows(task.train, stored)
    assert windows.rows.shape == (len(targets), 5, 1, 4) and set(targets[:, 0]) == {0, 1}


def test_parts_share_no_speaker_and_too_little_is_refused(speech):
    flow, _ = speech
    dealt = scenes.deal(flow)
    speakers = [{r.speaker for r in part} for part in dealt.values()]
    assert all(speakers) and sum(map(len, speakers)) == 5
    assert {len(part) for part in scenes.deal(flow[:3]).values()} == {1}  # of one speaker: recordings
    with pytest.raises(UserError, match="at least three"):
        scenes.deal(flow[:2])


def test_a_detection_task_is_measured_like_the_others(words, speech, tmp_path):
    flow, _ = speech
    said = [replace(flow[0], id="said", extra={"text": "The middle, then."}), *flow]
    write_manifest(tmp_path / "flow.jsonl", said)
    task = tmp_path / "spotting.yaml"
    task.write_text(
        f"name: spotting\nkind: detection\nsource: {words / 'manifest.jsonl'}\n"
        f"negatives: {{source: {tmp_path / 'flow.jsonl'}}}\ndetection: {{background: [low]}}\n"
    )
    grid = tmp_path / "grid.yaml"
    grid.write_text("noise: {sources: [{name: white, kind: white}], snr_db: [10]}\n")
    heads = HeadConfig(learning_rates=(3e-3,), epochs=2, steps=40)
    settings = Settings(seeds=1, heads=heads, replicates=50, similarity=0, save_audio=0)
    result = evaluate(["log-mel"], [task], grid, tmp_path / "out", settings=settings)
    (told,) = result["tasks"]
    assert told["metrics"][0]["title"] == "Recall at 0.5 false alarms an hour"
    clean = next(f for f in told["figures"] if f["condition"] == "clean")
    assert clean["low"] <= clean["value"] <= clean["high"]
    assert [row["condition"] for row in told["detection"]] == ["clean", "white_10dB"]
    assert told["detection"][0]["keywords"] == 12  # two test speakers say "middle" and "high" three times
    assert any("1 of 16 negatives hold a keyword" in note for note in result["notes"])
    points = list(csv.DictReader((tmp_path / "out" / "detection.csv").open()))
    assert len(points) == 2 * len(THRESHOLDS)
    picture = write_page(tmp_path / "out").read_text().split('" alt="DET curves"')[0].rsplit("base64,", 1)[1]
    ticks = base64.b64decode(picture).decode()
    assert ">100</text>" in ticks and "mathdefault" not in ticks  # numbers, not what matplotlib would typeset
    again = evaluate(["log-mel"], [task], grid, tmp_path / "out", settings=settings)
    assert again == result
    task.write_text(task.read_text().replace("negatives", "nonsense"))
    with pytest.raises(UserError):
        evaluate(["log-mel"], [task], grid, tmp_path / "out", settings=settings)


def test_negatives_are_asked_for():
    with pytest.raises(ValueError, match="needs negatives"):
        TaskConfig(name="x", kind="detection", source="words.jsonl")


def test_a_word_in_a_pause_is_as_loud_as_the_speech_that_pauses(tmp_path, voice):
    quiet = np.concatenate([np.full(48_000, 1e-4, np.float32), voice(5.0).astype(np.float32)])
    write_audio(tmp_path / "late.wav", quiet)
    write_audio(tmp_path / "word.wav", 0.01 * voice(0.6, 3).astype(np.float32))
    flow = Recording("late", str(tmp_path / "late.wav"), 8.0)
    word = Recording("word", str(tmp_path / "word.wav"), 0.6)
    clip = scenes.Montage("scene", word.path, 6.0, word=word, flow=(flow,))
    begin, end = (round(t * 16_000) for t in clip.marks())
    ratio = np.square(clip.load()[begin:end]).mean() / np.square(quiet[48_000:]).mean()
    assert abs(10 * np.log10(ratio)) < 6
