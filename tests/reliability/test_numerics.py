"""Laws at the edges of sound: silence, full scale, an offset, one frame, any SNR: always finite, in every precision."""

import json
import math

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import make_recipe, shared

from robustdistiller.acoustics.environment import Environment, fixed_scene
from robustdistiller.audio.io import SAMPLE_RATE, write_audio
from robustdistiller.audio.manifest import Recording
from robustdistiller.config import EnhancementConfig, EnvironmentConfig, ObjectivesConfig, StudentConfig
from robustdistiller.errors import AudioError, UserError
from robustdistiller.models.building import build_student
from robustdistiller.models.precision import autocast
from robustdistiller.models.teacher import load_teacher
from robustdistiller.objectives.total import total_loss
from robustdistiller.training.distill import distill

COUNT = 6400
VOICE = shared().speech_like(COUNT / SAMPLE_RATE, 1)
WAVES = {
    "speech": VOICE,
    "silence": np.zeros(COUNT, np.float32),
    "one sample that is not silent": np.eye(1, COUNT, 3000, dtype=np.float32)[0],
    "one frame": VOICE[1000:1400],
    "one frame of silence": np.zeros(400, np.float32),
    "clipped": np.sign(VOICE) * np.float32(1),
    "offset": VOICE * np.float32(0.01) + np.float32(0.9),
    "nothing but an offset": np.full(COUNT, 0.5, np.float32),
    "a whisper at -100 dB": VOICE * np.float32(1e-4),
    "denormal": VOICE * np.float32(1e-38),
    "integers taken for floats": VOICE * np.float32(32768),
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(checkpoint):
    """kind → (teacher, student in training mode), with and without normalisation of the input."""
    made = {}

    def get(normalize=False):
        if normalize not in made:
            teacher = load_teacher(str(checkpoint("hubert", normalize=normalize)), precision="fp32")
            student, _ = build_student(teacher, StudentConfig(layers=1), EnhancementConfig(hidden=8, layers=1))
            made[normalize] = teacher, student.train()
        return made[normalize]

    return get


@pytest.fixture(scope="module")
def environment():
    return Environment.build(EnvironmentConfig(simulated_rooms=2))


def padded(waves):
    lengths = torch.tensor([len(w) for w in waves])
    batch = torch.zeros(len(waves), int(lengths.max()))
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    return batch, lengths


def step(teacher, student, environment, waves, scenes, objectives, precision="fp32"):
    """Loss per utterance and the gradient of one training step."""
    clean, lengths = padded(waves)
    noises = [environment.fetch(scene, len(wave)) for scene, wave in zip(scenes, waves, strict=True)]
    noise, _ = padded([np.zeros(len(w), np.float32) if n is None else n for n, w in zip(noises, waves, strict=True)])
    noisy = environment.render(clean, lengths, noise, scenes)
    assert bool(torch.isfinite(noisy).all())
    target = teacher(clean, lengths)
    torch.manual_seed(0)
    with autocast(torch.device("cpu"), precision):
        output = student(noisy, lengths)
    loss = total_loss(objectives, output, target, clean)
    student.zero_grad(set_to_none=True)
    loss.total.sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    return loss, gradient


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("snr", [-60.0, 60.0])
def test_every_sound_at_every_snr_gives_finite_losses_and_gradients(pair, environment, normalize, snr):
    teacher, student = pair(normalize)
    room = environment.rooms.ids[0]
    scenes = [
        fixed_scene(environment, name, len(wave) / SAMPLE_RATE, 0, snr, "white", room) for name, wave in WAVES.items()
    ]
    objectives = ObjectivesConfig(correlation=0.1)
    for precision in ("fp32", "bf16"):
        loss, gradient = step(teacher, student, environment, list(WAVES.values()), scenes, objectives, precision)
        for name, value in zip(WAVES, loss.total, strict=True):
            assert bool(torch.isfinite(value)), (name, precision, {k: v.tolist() for k, v in loss.terms.items()})
        assert bool(torch.isfinite(gradient).all()), precision


@settings(max_examples=15, deadline=None)
@given(st.integers(400, 1500), st.floats(-60, 60), st.sampled_from([1e-6, 1e-2, 1.0, 30.0]), st.integers(0, 99))
def test_any_loudness_length_and_snr_gives_a_finite_step(pair, environment, count, snr, scale, seed):
    teacher, student = pair()
    wave = (scale * np.random.default_rng(seed).standard_normal(count)).astype(np.float32)
    scene = fixed_scene(environment, "u", count / SAMPLE_RATE, seed, snr, "pink")
    loss, gradient = step(teacher, student, environment, [wave, VOICE], [scene, scene], ObjectivesConfig())
    assert bool(torch.isfinite(loss.total).all()) and bool(torch.isfinite(gradient).all())


def test_half_precision_trains_as_single_precision_does(pair, environment):
    """bf16 against fp32: the loss within 2 %, the direction of the gradient within a cosine of 0.98."""
    teacher, student = pair()
    waves = [shared().speech_like(0.4, n) for n in range(4)]
    scenes = [fixed_scene(environment, str(n), 0.4, 0, 5.0, "white") for n in range(4)]
    (one, g), (two, h) = (
        step(teacher, student.eval(), environment, waves, scenes, ObjectivesConfig(), p) for p in ("fp32", "bf16")
    )
    student.train()
    torch.testing.assert_close(two.total, one.total, rtol=0.02, atol=0)
    assert float(torch.cosine_similarity(g, h, dim=0)) > 0.98


@pytest.mark.parametrize("kind", ["hubert", "wavlm", "wav2vec2"])
def test_a_row_without_a_frame_is_refused_not_turned_into_nan(checkpoint, kind):
    teacher = load_teacher(str(checkpoint(kind)), precision="fp32")
    student, _ = build_student(teacher, StudentConfig(layers=1), EnhancementConfig(hidden=8, layers=1))
    for rest in (0, 1, 399):
        wave, lengths = padded([VOICE, VOICE[:rest]])
        for answer in (student.states, student.enhance, student, teacher):
            with pytest.raises(UserError, match="shorter than one frame"):
                answer(wave, lengths)
    wave, lengths = padded([VOICE, VOICE[:400]])
    states, frames = student.eval().states(wave, lengths)
    alone, _ = student.states(wave[1:, :400])
    assert frames.tolist() == [19, 1] and bool(torch.isfinite(states).all()) and not bool(states[1, :, 1:].any())
    torch.testing.assert_close(states[1:, :, :1], alone, atol=1e-5, rtol=0)
    assert bool(torch.isfinite(student.enhance(wave, lengths)).all())


@pytest.mark.parametrize("response", [np.zeros(800), np.full(800, np.nan)])
def test_a_response_of_nothing_is_passed_over(tmp_path, response):
    from robustdistiller.acoustics.rooms import RoomBank

    soundfile.write(tmp_path / "r.wav", response, SAMPLE_RATE, "FLOAT")
    bank = RoomBank([Recording("r", str(tmp_path / "r.wav"), 0.05)])
    with pytest.raises(AudioError):
        bank.load("r")
    bank.add_simulated(1, (0.2, 0.3), 0)
    assert bank.draw(np.random.default_rng(0)).startswith("simulated")


def test_a_response_much_longer_than_the_speech_gives_a_finite_step(pair, tmp_path):
    write_audio(
        tmp_path / "r.wav", np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE) * np.exp(-np.arange(48000) / 8000)
    )
    room = Recording("r", str(tmp_path / "r.wav"), 3.0)
    environment = Environment.build(EnvironmentConfig(simulated_rooms=0), rooms=[room])
    scene = fixed_scene(environment, "u", 400 / SAMPLE_RATE, room="r")
    loss, gradient = step(*pair(), environment, [VOICE[:400], VOICE], [scene, scene], ObjectivesConfig())
    assert bool(torch.isfinite(loss.total).all()) and bool(torch.isfinite(gradient).all())


def test_a_corpus_of_odd_files_is_trained_on_and_what_cannot_be_used_is_listed(checkpoint, tmp_path):
    voice = shared().speech_like
    files = {
        "low.wav": (voice(0.6, 1, 8000), 8000), "high.wav": (voice(0.6, 2, 192_000), 192_000),
        "clipped.wav": (np.sign(voice(0.6, 3)), SAMPLE_RATE), "offset.wav": (voice(0.6, 4) * 0.1 + 0.8, SAMPLE_RATE),
        "loud.wav": (voice(0.6, 5) * 32768, SAMPLE_RATE), "plain.wav": (voice(0.6, 6), SAMPLE_RATE),
        "silent.wav": (np.zeros(9600), SAMPLE_RATE), "sample.wav": (np.ones(1), SAMPLE_RATE),
        "nan.wav": (np.full(9600, np.nan), SAMPLE_RATE), "empty.wav": (np.zeros(0), SAMPLE_RATE),
    }  # fmt: skip
    for name, (wave, rate) in files.items():
        soundfile.write(tmp_path / name, wave, rate, "FLOAT")
    (tmp_path / "broken.wav").write_bytes(b"RIFF" + bytes(60))
    overrides = ("training.steps=6", "environment.snr_db=[-60, 60]", "training.seed=1")
    result = distill(make_recipe(checkpoint("hubert"), tmp_path, *overrides), tmp_path / "run")
    assert result.progress.skipped_steps == 0 and math.isfinite(result.metrics["loss/contaminated"])
    skipped = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    reasons = {row["path"].rpartition("/")[2]: row["reason"] for row in skipped}
    assert reasons == {
        "silent.wav": "silent", "sample.wav": "too-short", "nan.wav": "nan", "empty.wav": "empty", "broken.wav": "corrupt",
    }  # fmt: skip
