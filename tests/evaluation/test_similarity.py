"""Laws of the label-free score: streamed sums equal the textbook formula, and only real changes lower it."""

import numpy as np
import pytest
import torch

from robustdistiller.evaluation.similarity import MeanCosine, Similarity

GENERATOR = torch.Generator().manual_seed(0)


def random(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def cka_of(clean, noisy, frames):
    running = Similarity()
    for k in range(0, len(clean), 2):
        running.add(clean[k : k + 2], noisy[k : k + 2], frames[k : k + 2])
    return running.cka()


def test_streamed_cka_equals_the_formula_on_all_frames():
    clean, frames = random(6, 2, 9, 5), torch.tensor([9, 4, 9, 1, 6, 9])
    noisy = clean + random(6, 2, 9, 5) + 3
    for s, value in enumerate(cka_of(clean, noisy, frames)):
        x, y = (np.concatenate([t[k, s, :n].double().numpy() for k, n in enumerate(frames)]) for t in (clean, noisy))
        x, y = x - x.mean(0), y - y.mean(0)
        formula = np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
        assert value == pytest.approx(formula)


def test_cka_forgives_rotation_and_scale_and_cosine_does_not():
    clean, frames = random(4, 1, 30, 6), torch.tensor([30, 30, 20, 10])
    rotation = torch.linalg.qr(random(6, 6))[0]
    turned = 5 * clean @ rotation + 2
    assert cka_of(clean, turned, frames) == pytest.approx([1.0])
    cosine = MeanCosine(torch.zeros(1, 6))
    cosine.add(clean, turned, frames)
    assert cosine.value()[0] < 0.9


def test_untouched_features_score_one_and_padding_does_not_count():
    clean, frames = random(3, 2, 8, 4), torch.tensor([8, 5, 2])
    noisy = clean.clone()
    noisy[1, :, 5:], noisy[2, :, 2:] = 99.0, -99.0
    cosine = MeanCosine(torch.zeros(2, 4))
    cosine.add(clean, noisy, frames)
    assert cosine.value() == pytest.approx([1.0, 1.0]) and cka_of(clean, noisy, frames) == pytest.approx([1.0, 1.0])


def test_a_large_constant_part_does_not_hide_a_change():
    clean, frames = random(2, 1, 50, 4) + 100, torch.tensor([50, 50])
    noisy = random(2, 1, 50, 4) + 100
    cosine = MeanCosine(torch.full((1, 4), 100.0))
    cosine.add(clean, noisy, frames)
    assert abs(cosine.value()[0]) < 0.3
