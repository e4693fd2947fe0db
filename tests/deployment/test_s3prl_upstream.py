"""A student is an upstream of s3prl: lists of waveforms in, hidden states out, found by name."""

import sys
import types

import pytest
import torch
from torch import nn

from robustdistiller.deployment import s3prl_upstream
from robustdistiller.deployment.s3prl_upstream import UpstreamExpert
from robustdistiller.errors import UserError
from robustdistiller.models.student import load_student


def test_hidden_states_are_those_of_the_student_alone(student_folder, voice):
    upstream = UpstreamExpert(str(student_folder)).eval()
    student = load_student(student_folder)
    waves = [torch.from_numpy(voice(seconds, k)) for k, seconds in enumerate((0.7, 0.31, 0.5))]
    with torch.no_grad():
        output = upstream(waves)
    assert len(output["hidden_states"]) == 2 and output["last_hidden_state"] is output["hidden_states"][-1]
    for k, wave in enumerate(waves):
        wanted, frames = student.states(wave[None])
        for state, hidden in zip(wanted[0], output["hidden_states"], strict=True):
            torch.testing.assert_close(hidden[k, : int(frames)], state, atol=2e-5, rtol=1e-4)
            assert not hidden[k, int(frames) :].any()


def test_predictions_are_further_states(student_folder, voice):
    output = UpstreamExpert(str(student_folder), predictions=True)([torch.from_numpy(voice(0.3))])
    assert [tuple(h.shape) for h in output["hidden_states"]] == [(1, 14, 64)] * 4


def test_the_interface_is_that_of_s3prl(student_folder):
    """What its runner and featuriser ask for: a module, a rate for any key, states to be weighted, gradients."""
    upstream = UpstreamExpert(ckpt=str(student_folder), model_config=None, refresh=False)
    assert isinstance(upstream, nn.Module) and upstream.get_downsample_rates("hidden_states") == 320
    hidden = upstream([torch.randn(16_000)])["hidden_states"]
    assert abs(16_000 // 320 - hidden[0].shape[1]) < 5 and len({h.shape for h in hidden}) == 1
    torch.stack(hidden).square().mean().backward()
    assert next(upstream.student.encoder.model.feature_extractor.parameters()).grad is not None
    assert not any(name.startswith(("student.heads", "student.enhancer")) for name, _ in upstream.named_parameters())


def test_registering_makes_it_known_by_name(student_folder, monkeypatch):
    package, hub = types.ModuleType("s3prl"), types.ModuleType("s3prl.hub")
    package.hub = hub
    monkeypatch.setitem(sys.modules, "s3prl", package)
    monkeypatch.setitem(sys.modules, "s3prl.hub", hub)
    s3prl_upstream.register()
    made = hub.robustdistiller(ckpt=str(student_folder), model_config=None, refresh=False)
    assert isinstance(made, UpstreamExpert) and hub.robustdistiller_predictions(str(student_folder)).predictions


def test_without_s3prl_one_sentence_says_so(monkeypatch, student_folder):
    monkeypatch.setitem(sys.modules, "s3prl", None)
    with pytest.raises(UserError, match="s3prl"):
        s3prl_upstream.register()
    with pytest.raises(UserError, match="-k"):
        UpstreamExpert("")
