"""Laws of pretraining: crops are pure and clean, a resumed run is the same run, what is written opens anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoFeatureExtractor, AutoModel, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from robustdistiller.assets import asset
from robustdistiller.audio.io import write_audio
from robustdistiller.distributed import Distributed
from robustdistiller.errors import UserError
from robustdistiller.models.teacher import Teacher
from robustdistiller.models.whisper import WhisperEncoder
from robustdistiller.randomness import generator
from robustdistiller.training import checkpoint
from robustdistiller.training.mini import Mini, MiniConfig, build_mini, loss_terms
from robustdistiller.training.pretrain import (
    PretrainConfig,
    Pretraining,
    _check_same_run,
    export,
    load_pretrain_config,
    plateau_learning_rate,
    pretrain,
    train,
)
from robustdistiller.training.pretrain_speech import CropConfig, Pool, PoolConfig, cut, load_pools

SMALL = MiniConfig(layers=2, hidden_size=32, heads=2, feed_forward=32, channels=16, taps=(0, 1, 2), targets=(0, 1, 2))
CONFIG = PretrainConfig(
    model=SMALL,
    crops=CropConfig(seconds=(0.5, 0.75)),
    batch_seconds=1.0,
    warmup_batch_seconds=1.5,
    statistics_crops=4,
    valid_blocks=1,
    steps=4,
    warmup_steps=2,
    log_every=1,
    valid_every=2,
    save_every=1,
    precision="fp32",
)


def pools(kind: str = "train") -> list[Pool]:
    """Chirps of several lengths, some shorter and some longer than a crop."""
    waves = []
    for k in range(6):
        rng = generator("chirp", kind, k)
        time = np.arange(int(rng.uniform(0.2, 2.0) * 16_000)) / 16_000
        wave = np.sin(2 * np.pi * (rng.uniform(100, 300) + rng.uniform(50, 500) * time) * time) * rng.uniform(0.1, 0.8)
        waves.append((wave * 32767).astype(np.int16))
    return [Pool("a", tuple(waves[:3]), 1.0), Pool("b", tuple(waves[3:]), 2.0)]


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=24, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=16, vocab_size=16, max_source_positions=200, max_target_positions=8,
        pad_token_id=1, bos_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    return Teacher(WhisperEncoder(WhisperModel(config), WhisperFeatureExtractor()), precision="fp32")


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_a_resumed_run_ends_in_the_same_weights(teacher: Teacher, tmp_path: Path) -> None:
    whole = weights(train(CONFIG, pools(), pools("valid"), teacher, tmp_path / "whole"))
    train(CONFIG, pools(), pools("valid"), teacher, tmp_path / "parts", stop_after=1)
    train(CONFIG, pools(), pools("valid"), teacher, tmp_path / "parts", stop_after=3)
    parts = weights(train(CONFIG, pools(), pools("valid"), teacher, tmp_path / "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)

    def rows(run: str) -> list[dict[str, float]]:
        found = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        # A part ends with a validation of its own.
        timed = ("time", "train/seconds_per_step")
        return [{k: v for k, v in row.items() if k not in timed} for row in found if "train/loss" in row]

    assert rows("whole") == rows("parts")
    assert len(checkpoint.available(tmp_path / "whole")) == 2  # older ones are dropped


def test_training_lowers_the_loss_of_both_terms(teacher: Teacher, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 30, "warmup_steps": 3, "learning_rate": 3e-3, "valid_every": 30})
    train(config, pools(), pools("valid"), teacher, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert np.mean(losses[-5:]) < 0.97 * np.mean(losses[:5])


def test_the_end_of_a_run_may_be_chosen_while_it_goes(teacher: Teacher, tmp_path: Path) -> None:
    longer = CONFIG.model_copy(update={"steps": 100})
    for step in range(60):  # before the fall of the shorter run, both have the same rate
        assert plateau_learning_rate(CONFIG.model_copy(update={"steps": 90}), step) == plateau_learning_rate(
            longer, step
        )
    _check_same_run(CONFIG, tmp_path)
    train(CONFIG, pools(), pools("valid"), teacher, tmp_path, stop_after=1)
    _check_same_run(longer, tmp_path)
    written = json.loads((tmp_path / "pretrain.json").read_text())
    del written["model"]["architecture"]  # as before there was a choice
    (tmp_path / "pretrain.json").write_text(json.dumps(written))
    _check_same_run(longer, tmp_path)
    with pytest.raises(UserError, match="another 'seed'"):
        _check_same_run(CONFIG.model_copy(update={"seed": 1}), tmp_path)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 400), st.floats(0.01, 1.0))
def test_the_learning_rate_rises_stays_and_ends_at_zero(steps: int, warm: int, decay: float) -> None:
    config = CONFIG.model_copy(update={"steps": steps, "warmup_steps": warm, "decay": decay})
    rates = [plateau_learning_rate(config, step) for step in range(steps)]
    assert min(rates) > 0 and max(rates) <= config.learning_rate
    peak = int(np.argmax(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert plateau_learning_rate(config, steps) == 0.0


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_processes_share_the_gradient_of_a_batch(teacher: Teacher, share: float) -> None:
    config = CONFIG.model_copy(update={"mask": share, "batch_seconds": 1.5, "crops": CropConfig(seconds=(0.5,))})

    def gradient(rank: int, world: int) -> torch.Tensor:
        task = Pretraining(config, pools(), pools("valid"), teacher, Distributed(rank, world))
        task.mini.mean.fill_(0.1)
        loss = task.loss(task.mini, next(task.batches(2)))
        task.mini.zero_grad()
        (loss.total * loss.weights).sum().backward()
        return torch.cat([p.grad.flatten() for p in task.mini.parameters() if p.grad is not None])

    torch.testing.assert_close(sum(gradient(rank, 3) for rank in range(3)), gradient(0, 1), rtol=1e-3, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(2000, 30_000))
def test_a_crop_depends_on_its_key_alone_and_has_one_level(key: int, samples: int) -> None:
    crop = cut(pools(), samples, CropConfig(), key, "x")
    assert np.array_equal(crop, cut(pools(), samples, CropConfig(), key, "x"))
    assert crop.shape == (samples,) and crop.dtype == np.float32 and np.isfinite(crop).all()
    assert abs(crop.mean()) < 1e-3 and abs(crop.std() - 1) < 1e-3


def test_pools_are_drawn_by_their_weights() -> None:
    marked = [Pool("low", (np.full(40_000, 0, np.int16),), 1.0), Pool("high", pools()[0].waves, 3.0)]
    loud = [bool(cut(marked, 4000, CropConfig(), k).any()) for k in range(400)]
    assert 0.68 < np.mean(loud) < 0.82


def test_only_the_asked_split_and_only_speech_is_read(tmp_path: Path) -> None:
    rows = []
    for k, (split, label) in enumerate([("train", "yes"), ("train", "_silence_"), ("valid", "yes"), (None, "no")]):
        write_audio(tmp_path / f"{k}.wav", np.full(1000 * (k + 1), 0.1, np.float32))
        row = {"path": f"{k}.wav", "duration": (k + 1) / 16, "label": label, "id": str(k)}
        rows.append(row | ({"split": split} if split else {}))
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"a": PoolConfig(manifests=("m.jsonl",), weight=1.0, exclude=("_silence_",))}
    assert [w.size for w in load_pools(config, [tmp_path])[0].waves] == [1000, 4000]
    assert [w.size for w in load_pools(config, [tmp_path / "none", tmp_path], "valid")[0].waves] == [3000]
    with pytest.raises(UserError, match="--data"):
        load_pools(config, [tmp_path / "none"])
    with pytest.raises(UserError, match="test"):
        load_pools(config, [tmp_path], "test")


def test_standardised_targets_have_no_mean_and_unit_variance_and_forget_the_position() -> None:
    mini = Mini(SMALL, 24, 0.75)
    rng = torch.Generator().manual_seed(0)
    frames = mini.mean.shape[1]
    position = torch.randn(24, generator=rng) * torch.linspace(0, 5, frames)[:, None]  # smooth in time, as Whisper's is
    scale = torch.logspace(-2, 2, 24)  # a few huge dimensions
    states = [torch.randn(40, 3, frames, 24, generator=rng) * scale + position for _ in range(10)]
    mini.measure(states)
    target = mini.standardise(torch.cat(states))
    assert target.mean((0, 1, 2)).abs().max() < 0.02
    torch.testing.assert_close(target.var((0, 1, 2)), torch.ones(24), rtol=0.02, atol=0)
    assert target.mean((0, 1))[5:-5].abs().max() < 0.3
    assert mini.standardise(states[0][:, :, :10]).shape == (40, 3, 10, 24)  # shorter crops use the first positions


def test_the_loss_is_zero_only_where_it_should_be() -> None:
    target = torch.randn(2, 3, 7, 24, generator=torch.Generator().manual_seed(0))
    l1, cosine = loss_terms(target, target)
    assert l1.abs().max() == 0
    torch.testing.assert_close(cosine, torch.full((2, 3), float(np.log1p(np.exp(-1.0)))))


ARCHITECTURES = {"hubert": "HubertModel", "wav2vec2": "Wav2Vec2Model", "wavlm": "WavLMModel"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_mini_computes_what_transformers_computes(architecture: str) -> None:
    torch.manual_seed(0)
    mini = Mini(SMALL.model_copy(update={"architecture": architecture}), 24, 0.75).eval()
    wave = torch.randn(2, 8000)
    states = mini.model(wave, output_hidden_states=True).hidden_states
    for tap, head in ((1, 1), (2, 2)):
        torch.testing.assert_close(mini(wave)[:, head], mini.heads[head](states[tap]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_export_opens_in_transformers_in_float32(architecture: str, tmp_path: Path) -> None:
    mini = Mini(SMALL.model_copy(update={"architecture": architecture}), 24, 0.75).eval()
    folder = export(mini, tmp_path / "model")
    model, extractor = AutoModel.from_pretrained(folder), AutoFeatureExtractor.from_pretrained(folder)
    assert (
        type(model).__name__ == ARCHITECTURES[architecture] and model.dtype == torch.float32 and extractor.do_normalize
    )
    assert model.config.layerdrop == 0 and not model.config.apply_spec_augment
    for name, value in mini.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_the_default_mini_has_the_shipped_size() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build_mini().parameters()) == 10_299_264


def test_the_architecture_can_be_chosen_beside_a_recipe() -> None:
    shipped = load_pretrain_config("mini-hubert")
    other = load_pretrain_config("mini-hubert", architecture="wavlm", seed=3)
    assert other == shipped.model_copy(
        update={"model": shipped.model.model_copy(update={"architecture": "wavlm"}), "seed": 3}
    )
    with pytest.raises(UserError, match="architecture"):
        load_pretrain_config("mini-hubert", architecture="conformer")


def test_a_wrong_recipe_is_one_sentence(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("stepz: 5\n")
    with pytest.raises(UserError, match="Did you mean 'steps'"):
        load_pretrain_config(recipe)
    recipe.write_text("- 1\n")
    with pytest.raises(UserError, match="mapping"):
        load_pretrain_config(recipe)
    recipe.write_text("steps: 7\n")
    assert load_pretrain_config(recipe, seed=3, teacher=None).seed == 3
    assert load_pretrain_config("mini-hubert").name == "mini-hubert"
    with pytest.raises(UserError, match="check the path"):
        load_pretrain_config(tmp_path / "none.yaml")


def test_what_is_missing_is_told_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*arguments: object, **options: object) -> None:
        pytest.fail("something was loaded")

    for name in ("load_teacher", "Mini"):
        monkeypatch.setattr(f"robustdistiller.training.pretrain.{name}", loaded)
    config = load_pretrain_config("mini-hubert", teacher="mini-hubert")
    with pytest.raises(UserError, match=r"There is no speech/.*manifest\.jsonl under .*--data"):
        pretrain(config, tmp_path / "run", [tmp_path])
    monkeypatch.setattr("robustdistiller.training.pretrain.load_pools", loaded)
    with pytest.raises(UserError, match="Did you mean 'mini-hubert'"):
        pretrain(config.model_copy(update={"teacher": "mini-huber"}), tmp_path / "run", [tmp_path])


def test_a_plan_says_what_is_learned_from_what(teacher: Teacher) -> None:
    told = "\n".join(Pretraining(CONFIG, pools(), pools("valid"), teacher, Distributed()).plan())
    assert "a 0.00 h, b 0.00 h" in told and "1 blocks of 24 s held out" in told and "4 steps of 1 s" in told


def test_an_unknown_asset_names_what_is_shipped() -> None:
    with pytest.raises(UserError, match="mini-hubert"):
        asset("mini-huber")
    assert (asset("mini-hubert") / "config.json").is_file()


def test_the_shipped_mini_teacher_is_whole_and_small() -> None:
    folder = asset("mini-hubert")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 24 * 2**20
    model = AutoModel.from_pretrained(folder).eval()
    assert model.dtype == torch.float32 and model.config.num_hidden_layers == 12
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    wave = torch.from_numpy(cut(pools(), 16_000, CropConfig(), "shipped"))[None]
    with torch.no_grad():
        output = model(wave, output_hidden_states=True)
    assert len(output.hidden_states) == 13 and output.last_hidden_state.shape == (1, 49, 256)
    assert output.last_hidden_state.std(1).mean() > 0.05  # it says something about time
