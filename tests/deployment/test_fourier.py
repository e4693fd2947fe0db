"""The convolutions that stand for the Fourier transform are it."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdistiller.deployment.fourier import Analysis, Synthesis
from robustdistiller.models.heads import istft, stft


@settings(max_examples=15, deadline=None)
@given(samples=st.integers(400, 9000), seed=st.integers(0, 99))
def test_analysis_equals_the_stft_and_synthesis_inverts_it(samples, seed):
    wave = 0.1 * torch.randn(2, samples, generator=torch.Generator().manual_seed(seed))
    lengths = torch.full((2,), samples)
    spectrum, frames = stft(wave, lengths)
    real, imaginary = Analysis()(wave)
    torch.testing.assert_close(torch.complex(real, imaginary), spectrum, atol=2e-5, rtol=1e-5)
    mask = torch.rand(spectrum.shape, generator=torch.Generator().manual_seed(seed + 1))
    valid = torch.ones(2, 1, spectrum.shape[-1])
    wanted = istft(mask * spectrum, frames, lengths, samples)
    torch.testing.assert_close(Synthesis()(mask * real, mask * imaginary, valid, samples), wanted, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(Synthesis()(real, imaginary, valid, samples), wave, atol=2e-6, rtol=1e-4)


def test_the_first_block_is_convolution_norm_and_activation(checkpoint):
    from robustdistiller.deployment.graph import FirstBlock
    from robustdistiller.models.encoder import _FIRST_LENGTHS, bound
    from robustdistiller.models.frames import FrameGrid
    from robustdistiller.models.hub import load_encoder

    block = load_encoder(checkpoint("hubert")).model.feature_extractor.conv_layers[0]
    with torch.no_grad():
        block.layer_norm.weight.uniform_(0.5, 2)
        block.layer_norm.bias.normal_()
    made = FirstBlock(block)
    wave = 0.1 * torch.randn(3, 5000) + torch.tensor([[0.0], [0.7], [0.0]])
    wave[2] *= 1e-4  # the norm's epsilon counts here
    lengths = torch.tensor([5000, 3210, 4999])
    frames = FrameGrid(5, 0, 10).count(lengths)
    with torch.no_grad(), bound(_FIRST_LENGTHS, frames):
        wanted, found = block(wave[:, None]), made(wave, lengths)
    for k, count in enumerate(frames.tolist()):
        torch.testing.assert_close(found[k, :, :count], wanted[k, :, :count], atol=2e-5, rtol=1e-4)
