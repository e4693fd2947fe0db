"""Laws of the objectives: each equals a straightforward NumPy computation on each utterance alone, and hears no padding."""

import numpy as np
import pytest
import torch

from robustdistiller.config import EnhancementConfig, ObjectivesConfig
from robustdistiller.models.encoder import EncoderOutput
from robustdistiller.models.heads import Enhancement, stft
from robustdistiller.models.student import StudentOutput
from robustdistiller.models.teacher import TeacherOutput
from robustdistiller.objectives import distillation, enhancement
from robustdistiller.objectives.quality import si_sdr
from robustdistiller.objectives.total import total_loss

B, L, F, D = 3, 2, 12, 8
LENGTHS = torch.tensor([12, 5, 9])


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, L, F, D, generator=generator), torch.randn(B, L, F, D, generator=generator)


def per_utterance(pair, function):
    """Apply a NumPy function of (F, D), (F, D) to the valid part of every utterance and layer."""
    predictions, targets = (x.numpy().astype(np.float64) for x in pair)
    return np.array([
        [function(predictions[b, k, : LENGTHS[b]], targets[b, k, : LENGTHS[b]]) for k in range(L)] for b in range(B)
    ])  # fmt: skip


def numpy_cosine(p, t):
    cosine = (p * t).sum(1) / (np.linalg.norm(p, axis=1) * np.linalg.norm(t, axis=1))
    return np.mean(np.log(1 + np.exp(-cosine)))


def numpy_correlation(p, t):
    p, t = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in (p, t))
    cross, own = p.T @ t / len(p), p.T @ p / len(p)
    off = ~np.eye(D, dtype=bool)
    return np.mean((1 - np.diag(cross)) ** 2) + np.mean(cross[off] ** 2) + np.mean(own[off] ** 2)


def numpy_vicreg(p, t):
    p = (p - p.mean(0)) / np.sqrt(t.var(0) + 1e-5)
    lacking = np.maximum(0, 1 - np.sqrt(p.var(0) + 1e-5 / (t.var(0) + 1e-5)))
    return lacking.mean() + np.mean((p.T @ p / len(p))[~np.eye(D, dtype=bool)] ** 2)


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (distillation.l1, lambda p, t: np.abs(p - t).mean()),
        (distillation.log_sigmoid_cosine, numpy_cosine),
        (distillation.mse, lambda p, t: np.square(p - t).mean()),
        (distillation.correlation, numpy_correlation),
        (distillation.vicreg, numpy_vicreg),
    ],
)
def test_distillation_terms_equal_a_plain_computation_and_hear_no_padding(pair, ours, reference):
    np.testing.assert_allclose(ours(*pair, LENGTHS).numpy(), per_utterance(pair, reference), atol=1e-5)
    loud = tuple(x.clone() for x in pair)
    for b in range(B):
        loud[0][b, :, LENGTHS[b] :] = 100.0
    torch.testing.assert_close(ours(*loud, LENGTHS), ours(*pair, LENGTHS), atol=1e-5, rtol=1e-5)


def test_identical_predictions_leave_only_what_the_cosine_keeps(pair):
    assert not distillation.l1(pair[1], pair[1], LENGTHS).any()
    kept = distillation.log_sigmoid_cosine(pair[1], pair[1], LENGTHS)
    torch.testing.assert_close(kept, torch.full((B, L), float(np.log(1 + np.exp(-1)))))


def make_estimate(voice, scale=1.0):
    """Two utterances of different lengths, a noisy version of them, and a fixed mask on it as the head would give."""
    lengths = torch.tensor([16000, 9000])
    clean = torch.tensor(np.stack([voice(1.0, 1), voice(1.0, 2)])) * scale
    clean[1, 9000:] = 0
    noise = torch.randn(2, 16000, generator=torch.Generator().manual_seed(1)) * 0.02 * scale
    noise[1, 9000:] = 0
    spectrum, frames = stft(clean + noise, lengths)
    mask = torch.rand(spectrum.shape, generator=torch.Generator().manual_seed(2))
    return clean, Enhancement(mask, spectrum, frames, lengths)


def only(estimate: Enhancement, clean, row):
    """The same utterance without its companion and without padding."""
    length, frames = int(estimate.lengths[row]), int(estimate.frames[row])
    alone = Enhancement(
        estimate.mask[row : row + 1, :, :frames], estimate.contaminated[row : row + 1, :, :frames],
        estimate.frames[row : row + 1], estimate.lengths[row : row + 1],
    )  # fmt: skip
    return alone, clean[row : row + 1, :length]


def test_the_enhancement_loss_hears_no_padding(voice):
    clean, estimate = make_estimate(voice)
    together = enhancement.enhancement_loss(estimate, clean)
    assert together.shape == (2,)
    for row in range(2):
        alone = enhancement.enhancement_loss(*only(estimate, clean, row))
        torch.testing.assert_close(together[row], alone[0], atol=2e-4, rtol=2e-4)


def test_the_enhancement_loss_does_not_depend_on_the_recording_level(voice):
    quiet, loud = (enhancement.enhancement_loss(*reversed(make_estimate(voice, scale))) for scale in (0.05, 1.0))
    torch.testing.assert_close(quiet, loud, atol=2e-2, rtol=2e-2)


def test_a_perfect_estimate_is_best_and_gradients_are_finite(voice):
    clean, estimate = make_estimate(voice)
    spectrum, frames = stft(clean, estimate.lengths)
    perfect = Enhancement(torch.ones(spectrum.shape), spectrum, frames, estimate.lengths)
    worse = enhancement.enhancement_loss(estimate, clean)
    assert (enhancement.enhancement_loss(perfect, clean) < worse - 1e-4).all()
    mask = torch.full(spectrum.shape, 0.5, requires_grad=True)
    for source in (clean, torch.zeros_like(clean)):
        noisy = stft(source, estimate.lengths)[0]
        guess = Enhancement(mask, noisy, frames, estimate.lengths)
        gradient = torch.autograd.grad(enhancement.enhancement_loss(guess, source).sum(), mask)[0]
        assert torch.isfinite(gradient).all()


def test_spectral_l1_equals_a_plain_computation(voice):
    clean, estimate = make_estimate(voice)
    for row in range(2):
        length, frames = int(estimate.lengths[row]), int(estimate.frames[row])
        x = clean[row, :length].numpy().astype(np.float64)
        padded = np.pad(x, 256)
        window = np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400), 56)
        magnitude = np.array([np.abs(np.fft.rfft(padded[160 * n : 160 * n + 512] * window)) for n in range(frames)]).T
        gain = 10 ** (-24 / 20) / np.sqrt(np.mean(x**2))
        expected = np.abs((estimate.magnitude[row, :, :frames].numpy() - magnitude) * gain).mean()
        ours = enhancement.enhancement_loss(estimate, clean)[row]
        np.testing.assert_allclose(float(ours), expected, rtol=1e-4)


def test_si_sdr_is_the_snr_of_an_orthogonal_noise():
    time = torch.arange(16000) / 16000
    clean, noise = torch.sin(2 * np.pi * 200 * time), torch.sin(2 * np.pi * 300 * time)
    lengths = torch.tensor([16000])
    for snr in (-10.0, 0.0, 25.0):
        mixed = 3.0 * (clean + noise * 10 ** (-snr / 20))[None]
        torch.testing.assert_close(si_sdr(mixed, clean[None], lengths), torch.tensor([snr]), atol=0.01, rtol=0)


def output_for(predictions, lengths, estimate=None):
    encoded = EncoderOutput((predictions[:, 0],), predictions[:, 0], lengths)
    return StudentOutput(encoded, predictions, estimate)


def test_the_total_is_the_weighted_sum_of_its_terms(pair, voice):
    clean, estimate = make_estimate(voice)
    predictions, targets = pair[0][:2], pair[1][:2]
    config = ObjectivesConfig(l1=0.5, cosine=2.0, correlation=0.1, enhancement=EnhancementConfig(weight=3.0))
    loss = total_loss(
        config, output_for(predictions, LENGTHS[:2], estimate), TeacherOutput(targets, LENGTHS[:2]), clean
    )
    terms = loss.terms
    expected = (
        0.5 * terms["l1"].mean(1) + 2 * terms["cosine"].mean(1) + 0.1 * terms["correlation"].mean(1)
        + 3 * terms["enhancement"]
    )  # fmt: skip
    torch.testing.assert_close(loss.total, expected)


def test_a_frame_more_or_less_than_the_teacher_is_no_error(pair):
    clean = torch.zeros(B, 100)
    config = ObjectivesConfig(enhancement=EnhancementConfig(enabled=False))
    for student, teacher in ((F, F - 2), (F - 1, F)):
        loss = total_loss(
            config,
            output_for(pair[0][:, :, :student], LENGTHS.clamp_max(student)),
            TeacherOutput(pair[1][:, :, :teacher], LENGTHS.clamp_max(teacher)),
            clean,
        )
        shared = LENGTHS.clamp_max(min(student, teacher))
        expected = distillation.l1(
            pair[0][:, :, : min(student, teacher)], pair[1][:, :, : min(student, teacher)], shared
        )
        torch.testing.assert_close(loss.terms["l1"], expected)


def test_a_recipe_of_before_means_what_it_meant():
    assert EnhancementConfig.model_validate({"loss": "l1", "weight": None}) == EnhancementConfig()
    assert EnhancementConfig.model_validate({"loss": "l1", "weight": 0.7}).weight == 0.7
    with pytest.raises(ValueError, match="loss"):
        EnhancementConfig.model_validate({"loss": "mrstft"})
