"""Laws of the hand-made features: they are what the textbook says, and padding never changes a valid frame."""

import numpy as np
import scipy.fft
import torch

from robustdistiller.evaluation.baselines import MFCC, LogMel, differences, mel_filters


def test_log_mel_is_the_log_of_filtered_power(voice):
    wave = voice(0.5)
    states, frames = LogMel().states(torch.tensor(wave)[None], torch.tensor([len(wave)]))
    filters = mel_filters(80).numpy()
    for f in (0, 7, int(frames[0]) - 1):
        piece = wave[320 * f : 320 * f + 400] * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400))
        power = np.abs(np.fft.rfft(piece, 512)) ** 2
        np.testing.assert_allclose(states[0, 0, f, :80], np.log(np.maximum(power @ filters, 1e-10)), atol=2e-3)


def test_each_mel_filter_peaks_where_the_mel_scale_says():
    filters = mel_filters(40, n_fft=4096).numpy()
    mel = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42)[1:-1]
    hertz = 700 * (10 ** (mel / 2595) - 1)
    np.testing.assert_allclose(filters.argmax(0) * 16_000 / 4096, hertz, atol=4)
    inside = filters[(np.arange(2049) * 16_000 / 4096 > hertz[0]) & (np.arange(2049) * 16_000 / 4096 < hertz[-1])]
    np.testing.assert_allclose(inside.sum(1), 1, atol=1e-6)  # neighbouring triangles share every frequency


def test_cepstra_are_the_orthonormal_dct(voice):
    wave = torch.tensor(voice(0.4))[None]
    model = MFCC()
    expected = scipy.fft.dct(LogMel.static(model, wave).numpy(), norm="ortho")[..., :13]
    np.testing.assert_allclose(model.static(wave).numpy(), expected, atol=1e-3)


def test_padding_never_changes_a_valid_frame(voice):
    for model in (LogMel(), MFCC()):
        short = torch.tensor(voice(0.41))
        batch = torch.randn(2, 16_000)
        batch[0, : len(short)] = short
        lengths = torch.tensor([len(short), 16_000])
        together, frames = model.states(batch, lengths)
        alone, count = model.states(short[None], lengths[:1])
        assert int(frames[0]) == int(count[0]) == alone.shape[2]
        torch.testing.assert_close(together[0, :, : count[0]], alone[0], atol=2e-4, rtol=0)


def test_differences_of_a_slope_are_its_steepness():
    ramp = 3.0 * torch.arange(20.0)[None, :, None]
    slopes = differences(ramp, torch.tensor([20]))[0, :, 0]
    torch.testing.assert_close(slopes[2:-2], torch.full((16,), 3.0))
