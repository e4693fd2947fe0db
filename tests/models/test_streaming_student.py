"""Laws of chunked attention: nothing beyond the look-ahead is heard, a chunk that is all is offline, draws follow the seed."""

import pytest
import torch
from transformers import AutoModel

from robustdistiller.config import EnhancementConfig, StreamingConfig, StudentConfig, load_recipe
from robustdistiller.errors import UserError
from robustdistiller.models.building import build_student
from robustdistiller.models.streaming import Chunking, draw_chunking
from robustdistiller.models.student import load_student
from robustdistiller.models.teacher import load_teacher

CHUNKED = StreamingConfig(chunk_ms=(40, 80), look_ahead_ms=(0, 60), left_ms=100)


@pytest.fixture
def teacher(checkpoint):
    return load_teacher(str(checkpoint("hubert")), precision="fp32")


def build(teacher, speech=(), **fields):
    config = StudentConfig(streaming=CHUNKED, feature_grad_mult=1.0, **fields)
    return build_student(teacher, config, EnhancementConfig(enabled=False), speech=speech)[0].eval()


def states(student, wave, chunking, lengths=None):
    student.chunking = chunking
    return student.states(wave, lengths)[0]


def test_a_chunk_as_long_as_the_audio_is_the_offline_pass(teacher, voice):
    student, wave = build(teacher), torch.tensor(voice(0.9))[None]
    offline = states(student, wave, None)
    torch.testing.assert_close(states(student, wave, Chunking(60, 0, 0)), offline, atol=1e-5, rtol=0)
    assert (states(student, wave, Chunking(4, 0, 8)) - offline).abs().max() > 1e-3


@pytest.mark.parametrize(("chunk", "ahead"), [(1, 0), (4, 3), (5, 0), (8, 80)])
def test_what_lies_beyond_the_look_ahead_is_not_heard(teacher, voice, chunk, ahead):
    student, wave = build(teacher), torch.tensor(voice(2.2))[None]
    chunking = Chunking(chunk, ahead, 6)
    stop = 3 * chunk  # frames of the first three chunks
    samples = (stop + ahead - 1) * 320 + 400
    other = wave.clone()
    other[:, samples:] = torch.randn(1, wave.shape[1] - samples)
    before, after = (states(student, x, chunking)[:, :, :stop] for x in (wave, other))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)
    other = wave.clone()
    other[:, samples - 80 :] = torch.randn(1, wave.shape[1] - samples + 80)
    if ahead < 8:  # the last frame of the look-ahead is within reach of the position convolution, and heard
        assert (states(student, other, chunking)[:, :, :stop] - before).abs().max() > 1e-5
    assert chunking.latency == pytest.approx(((chunk + ahead) * 320 + 80) / 16_000)


def test_left_context_is_bounded(teacher, voice):
    student, wave = build(teacher, position_kernel=2), torch.tensor(voice(1.6))[None]
    other = wave.clone()
    other[:, : 10 * 320] = 0.1 * torch.randn(1, 3200)  # frames 0 to 9
    far = [
        states(student, x, Chunking(4, 0, 5))[:, :, 24:] for x in (wave, other)
    ]  # two layers reach 2 · 5 frames back
    torch.testing.assert_close(*far, atol=1e-5, rtol=0)


def test_padding_changes_no_valid_frame(teacher, voice):
    student = build(teacher)
    long, short = torch.tensor(voice(1.1)), torch.tensor(voice(0.7, seed=3))
    batch = torch.zeros(2, len(long))
    batch[0], batch[1, : len(short)] = long, short
    together = states(student, batch, Chunking(4, 3, 5), torch.tensor([len(long), len(short)]))
    for row, wave in zip(together, (long, short), strict=True):
        alone = states(student, wave[None], Chunking(4, 3, 5))[0]
        torch.testing.assert_close(row[:, : alone.shape[1]], alone, atol=1e-5, rtol=0)


def test_plain_transformers_opens_the_same_weights_offline(teacher, voice, tmp_path):
    student, wave = build(teacher), torch.tensor(voice(0.8))[None]
    student.save(tmp_path / "student")
    model = AutoModel.from_pretrained(tmp_path / "student").eval()
    with torch.no_grad():
        last = model(wave).last_hidden_state
    torch.testing.assert_close(last, student.states(wave)[0][:, -1], atol=1e-5, rtol=0)
    again = load_student(f"{tmp_path / 'student'}@80+60")
    assert again.streaming == CHUNKED
    torch.testing.assert_close(again.states(wave)[0], states(student, wave, Chunking(4, 3, 5)))
    for wrong in ("@70+0", "@0+0"):
        with pytest.raises(UserError, match="multiples of a frame"):
            load_student(f"{tmp_path / 'student'}{wrong}")


def test_chunks_are_drawn_from_the_seed_and_cover_the_recipe(teacher, voice):
    draws = []
    for seed in range(200):
        torch.manual_seed(seed)
        draws.append(draw_chunking(CHUNKED))
        torch.manual_seed(seed)
        assert draw_chunking(CHUNKED) == draws[-1]
    assert set(draws) == {None, *(Chunking(c, a, 5) for c in (2, 4) for a in (0, 3))}
    student, wave = build(teacher, dropout=0.0).train(), torch.tensor(voice(0.6))[None]
    seed = next(s for s, drawn in enumerate(draws) if drawn == Chunking(4, 3, 5))
    torch.manual_seed(seed)
    in_training = student(wave).encoded.states[-1]
    torch.testing.assert_close(in_training, states(student.eval(), wave, Chunking(4, 3, 5))[:, -1], atol=1e-5, rtol=0)
    in_training.square().mean().backward()
    assert all(
        p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in student.encoder.model.encoder.parameters()
    )


@pytest.mark.parametrize("channels", [None, (8, 8, 12, 12, 16, 16, 32)])
def test_a_front_end_normalised_by_frames_is_fitted_to_one_normalised_over_time(teacher, voice, channels):
    speech = [torch.tensor(voice(1.5, seed)) for seed in (1, 2, 3, 4)]
    wave = torch.tensor(voice(1.2, seed=9))[None]
    wanted = teacher.states(wave)[0][0, 0]

    def distance(student):
        return float(
            (student.states(wave)[0][0, 0] - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean()
        )

    copied, fitted = build(teacher, conv_channels=channels), build(teacher, speech, conv_channels=channels)
    assert distance(fitted) < 0.5 * distance(copied)


def test_what_cannot_stream_is_told(checkpoint, teacher):
    with pytest.raises(UserError, match="pre-norm"):
        build(load_teacher(str(checkpoint("hubert", stable=True)), precision="fp32"))
    with pytest.raises(UserError, match="normalised over the utterance"):
        build(teacher, normalize=True)
    with pytest.raises(UserError, match="multiple of 20"):
        load_recipe("mini-stream", ["student.streaming.chunk_ms=[70]"])
