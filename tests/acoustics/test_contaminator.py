"""The module for other people's trainings: deterministic by key, exact, and as its documentation says."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import soundfile
import torch
from acoustics_material import RATE

from robustdistiller import Contaminator, EnvironmentConfig
from robustdistiller.acoustics import contamination
from robustdistiller.acoustics import contaminator as module
from robustdistiller.acoustics.contamination import contaminate
from robustdistiller.acoustics.environment import Environment

KINDS = {"recorded": 1, "babble": 1, "white": 1}
CONFIG = EnvironmentConfig(clean=0.1, noise_kinds=KINDS, noises=(1, 2), effects={"gain": 0.5, "clipping": 0.3})


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([9000, 16_000, 12_000, 800])
    return 0.1 * torch.randn(4, 16_000, generator=generator), lengths, ["a", "b", "c", "d"]


def test_a_batch_is_what_the_engine_makes_of_each_utterance(noises, talk, responses, batch) -> None:
    clean, lengths, keys = batch
    layer = Contaminator(CONFIG, noises, responses, talk, seed=3)
    environment = Environment.build(CONFIG, noises, responses, talk, seed=3)
    for epoch in range(3):
        out = layer(clean, lengths, keys, epoch)
        for row, wave, key, count in zip(out, clean, keys, lengths.tolist(), strict=True):
            expected, drawn = contaminate(wave[:count].numpy(), environment, key, epoch)
            assert torch.equal(row[:count], torch.from_numpy(expected)) and not row[count:].any()
            assert drawn in layer.scenes


def test_a_key_decides_and_neither_batch_nor_order(noises, responses, batch) -> None:
    clean, lengths, keys = batch
    layer = Contaminator(CONFIG, noises, responses, seed=3)
    out = layer(clean, lengths, keys)
    order = [2, 0, 3, 1]
    assert torch.equal(layer(clean[order], lengths[order], [keys[i] for i in order]), out[order])
    assert torch.equal(layer(clean[1:2], lengths[1:2], keys[1:2]), out[1:2])
    assert not torch.equal(layer(clean, lengths, keys, epoch=1), out)
    assert not torch.equal(Contaminator(CONFIG, noises, responses, seed=4)(clean, lengths, keys), out)


def test_counted_batches_go_on_after_a_checkpoint(noises, batch) -> None:
    clean, lengths, _ = batch
    straight = Contaminator(CONFIG, noises)
    outs = [straight(clean, lengths) for _ in range(4)]
    assert not torch.equal(outs[0], outs[1])
    first, second = Contaminator(CONFIG, noises), Contaminator(CONFIG, noises)
    first(clean, lengths), first(clean, lengths)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(clean, lengths), outs[2])


def test_evaluation_mode_type_and_gradients(batch) -> None:
    clean, lengths, keys = batch
    layer = Contaminator(EnvironmentConfig(clean=0))
    model = torch.nn.Sequential(layer, torch.nn.Linear(16_000, 2))
    assert not list(layer.parameters())
    model(clean).sum().backward()
    assert not layer(clean.clone().requires_grad_(), lengths, keys).requires_grad
    assert layer(clean.half(), lengths, keys).dtype == torch.float16
    model.eval()
    assert layer(clean, lengths, keys) is clean and layer.scenes == []


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noises, responses) -> None:
    assert all(doctest.testmod(documented).failed == 0 for documented in (module, contamination))
    for folder, recordings in (("noise", noises), ("rirs", responses)):
        (tmp_path / folder).mkdir()
        for number, recording in enumerate(recordings):
            soundfile.write(tmp_path / folder / f"{number}.wav", recording.load(), RATE)
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    heard = []
    batch = (["x", "y"], 0.1 * torch.randn(2, 8000), torch.tensor([8000, 6000]))
    exec(code, {"loader": [batch], "model": lambda noisy, clean: heard.append(noisy)})
    assert len(heard) == 2 and all(noisy.shape == (2, 8000) for noisy in heard)
