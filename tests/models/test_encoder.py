"""Laws of the encoder: it equals `transformers`, and padding never changes a valid frame."""

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel

from robustdistiller.models.encoder import (
    ConvEncoder,
    LengthAwareGroupNorm,
    conv_grid,
    convolve_by_products,
    normalize_wave,
)
from robustdistiller.models.frames import GRID, FrameGrid, align_frames
from robustdistiller.models.hub import load_encoder

# kind, and fields of its config that change what is computed
FAMILIES = [
    ("hubert", {}), ("hubert", {"stable": True}), ("hubert", {"conv_pos_batch_norm": True}), ("wav2vec2", {}),
    ("wav2vec2", {"stable": True}), ("wav2vec2", {"stable": True, "adapter_attn_dim": 8}), ("wavlm", {}),
    ("wavlm", {"stable": True}), ("unispeech", {}), ("unispeech", {"stable": True}), ("unispeech-sat", {}),
    ("data2vec-audio", {}), ("wav2vec2-conformer", {}), ("wav2vec2-conformer", {"position_embeddings_type": "rotary"}),
    ("wav2vec2-conformer", {"position_embeddings_type": "relative", "feat_extract_norm": "layer"}), ("wav2vec2-bert", {}),
    ("wav2vec2-bert", {"position_embeddings_type": "relative"}), ("sew", {}), ("sew", {"conv_dim": (32,) * 12 + (64,)}),
    ("sew-d", {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "taps", "padding", "groups"), [(37, 128, 64, 4), (40, 8, 4, 1), (5, 5, 2, 2), (64, 3, 0, 8)]
)
def test_a_convolution_by_products_equals_the_convolution(size, taps, padding, groups):
    draw = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in ((3, 16, size), (24, 16 // groups, taps), (24,))
    ]
    results = []
    for convolve in (convolve_by_products, torch.nn.functional.conv1d):
        x, weight, bias = (tensor.clone().requires_grad_() for tensor in tensors)
        out = convolve(x, weight, bias, padding=padding, groups=groups)
        out.sin().sum().backward()
        results.append([out, x.grad, weight.grad, bias.grad])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)
    with torch.autocast("cpu", torch.bfloat16):
        rough = convolve_by_products(*(tensor.float() for tensor in tensors), padding, groups)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.double(), results[0][0].detach(), atol=0.3, rtol=0.05)


@torch.no_grad()
def test_the_first_normalisation_may_be_in_half_precision(checkpoint, voice, monkeypatch):
    """All else being multiplied in half precision, states are no further from those in single precision."""
    encoder = load_encoder(str(checkpoint("hubert")))
    wave = torch.tensor(np.stack([voice(1.0), voice(1.0, seed=1)]))

    def error() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return float((encoder(wave).states[-1].float() - expected).norm() / expected.norm())

    expected = encoder(wave).states[-1]
    halved = error()
    monkeypatch.setattr(LengthAwareGroupNorm, "forward", torch.nn.GroupNorm.forward)
    assert 0 < halved < 1.1 * error()


@pytest.mark.parametrize(("kind", "fields"), FAMILIES)
@pytest.mark.parametrize("samples", [11_200, 11_000 + 320])
def test_every_layer_equals_that_of_transformers(checkpoint, voice, kind, fields, samples):
    folder = checkpoint(kind, **fields)
    wave = torch.tensor(voice(1.0))[None, :samples]
    encoder = load_encoder(folder).eval()
    model = AutoModel.from_pretrained(folder).eval()
    given = wave
    if kind == "wav2vec2-bert":
        features = AutoFeatureExtractor.from_pretrained(folder)(
            wave[0].numpy(), sampling_rate=16_000, return_tensors="pt"
        )
        given = features.input_features[:, : int(features.attention_mask.sum())]
    with torch.no_grad():
        reference = model(given, output_hidden_states=True)
        ours = encoder(wave)
    states = list(reference.hidden_states)
    assert len(ours.states) == len(states) == 4
    frames = int(ours.lengths)
    assert frames == (
        reference.last_hidden_state.shape[1] // 2 * 2 if "sew" in kind else reference.last_hidden_state.shape[1]
    )
    # v5 of transformers collects the sum before the last norm; the last state is the model's output here.
    states[-1] = reference.last_hidden_state[:, :frames]
    for layer in (1, 2, 3):
        theirs = states[layer].repeat_interleave(2, 1) if "sew" in kind and layer < 3 else states[layer]
        assert theirs.std() > 1e-3
        torch.testing.assert_close(ours.states[layer], theirs, atol=2e-4 if kind == "wav2vec2-bert" else 1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "fields"), [*FAMILIES, ("whisper", {})])
@pytest.mark.parametrize("normalize", [False, True])
def test_padding_never_changes_a_valid_frame(checkpoint, voice, kind, fields, normalize):
    encoder = load_encoder(checkpoint(kind, **fields)).eval()
    encoder.normalize = normalize and kind not in ("whisper", "wav2vec2-bert")
    waves = [torch.tensor(voice(seconds, seed)) for seed, seconds in enumerate((0.5, 1.03, 0.05))]
    lengths = torch.tensor([len(wave) for wave in waves])
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    with torch.no_grad():
        together = encoder(batch, lengths)
        for row, wave in enumerate(waves):
            alone = encoder(wave[None])
            frames = int(alone.lengths)
            assert frames == int(together.lengths[row]) > 0
            for mine, theirs in zip(together.states, alone.states, strict=True):
                torch.testing.assert_close(mine[row, :frames], theirs[0, :frames], atol=1e-4, rtol=0)


def test_what_lies_in_the_padding_is_not_heard(checkpoint, voice):
    encoder = load_encoder(checkpoint("hubert")).eval()
    wave = torch.tensor(voice(1.0))[None].repeat(2, 1)
    lengths = torch.tensor([9000, 16000])
    noisy = wave.clone()
    noisy[0, 9000:] = torch.randn(7000)
    silent = wave.clone()
    silent[0, 9000:] = 0
    with torch.no_grad():
        one, other = encoder(noisy, lengths), encoder(silent, lengths)
    frames = int(one.lengths[0])
    torch.testing.assert_close(one.states[-1][0, :frames], other.states[-1][0, :frames], atol=1e-4, rtol=0)


def test_normalisation_equals_that_of_the_hub(voice):
    from transformers import Wav2Vec2FeatureExtractor

    waves = [voice(0.5, 1) + 0.1, voice(0.8, 2) * 0.01]
    lengths = torch.tensor([len(wave) for wave in waves])
    batch = torch.nn.utils.rnn.pad_sequence([torch.tensor(wave) for wave in waves], batch_first=True)
    expected = Wav2Vec2FeatureExtractor(do_normalize=True)(waves, sampling_rate=16_000).input_values
    ours = normalize_wave(batch, lengths)
    for row, values in enumerate(expected):
        torch.testing.assert_close(ours[row, : lengths[row]], torch.tensor(values), atol=1e-4, rtol=0)
        assert not ours[row, lengths[row] :].any()


def test_gradient_of_the_convolutions_is_scaled(checkpoint, voice):
    folder = checkpoint("hubert")
    gradients = []
    for factor in (1.0, 0.1):
        encoder = ConvEncoder(AutoModel.from_pretrained(folder, layerdrop=0.0), grad_mult=factor).train()
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for layer in encoder.model.encoder.layers:
            layer.attention.dropout = 0.0
        last = encoder(torch.tensor(voice(0.5))[None]).states[-1]
        # Not of the squares: the last state is normalised, their sum is a constant and its gradient nothing but rounding.
        (last * torch.linspace(-1, 1, last.numel()).view_as(last)).sum().backward()
        convolution = encoder.model.feature_extractor.conv_layers[3].conv.weight.grad
        gradients.append((convolution.clone(), encoder.model.feature_projection.projection.weight.grad.clone()))
    assert gradients[0][0].abs().max() > 0.01
    torch.testing.assert_close(gradients[0][0] * 0.1, gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1])


def test_the_grid_of_the_paper_is_20_ms():
    assert conv_grid((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)) == GRID
    samples = torch.tensor([0, 399, 400, 719, 720, 16000])
    assert GRID.count(samples).tolist() == [0, 0, 1, 1, 2, 49]


def test_frames_are_aligned_by_time_and_never_fail():
    whisper = FrameGrid(320, 0, 1)
    features = torch.arange(8.0).view(1, 1, 8, 1)
    aligned = align_frames(features, torch.tensor([6]), whisper, GRID, 9)[0, 0, :, 0]
    # centre of frame f: 320 f + 200, nearest of 320 g: g = f + 1; frames past the sixth repeat the last valid one
    assert aligned.tolist() == [1, 2, 3, 4, 5, 5, 5, 5, 5]
