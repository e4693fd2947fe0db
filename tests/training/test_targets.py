"""Laws of the target cache: a warm run is the cold one, nothing foreign or damaged is ever used, and the disk is bounded."""

import json
import logging
import multiprocessing
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from robustdistiller.config import load_recipe
from robustdistiller.errors import UserError
from robustdistiller.models.teacher import Teacher, load_teacher
from robustdistiller.training import checkpoint as checkpoints
from robustdistiller.training import target_cache
from robustdistiller.training.distill import distill
from robustdistiller.training.observer import Observer
from robustdistiller.training.target_cache import TargetCache, audio_key

CPU = torch.device("cpu")
FIELDS = [
    "student.feature_grad_mult=1.0", "data.crop_seconds=1.0", "data.batch_seconds=5.0", "data.valid_seconds=4",
    "data.workers=0", "data.valid_fraction=0.25", "data.fixed_crops=2", "environment.simulated_rooms=3",
    "objectives.enhancement.hidden=16", "objectives.enhancement.layers=1", "training.learning_rate=1e-3",
    "training.precision=fp32", "training.log_every=1", "training.valid_every=4", "training.save_every=3",
    "training.steps=8",
]  # fmt: skip


class Counting(Teacher):
    """A teacher that counts the utterances that it was asked about."""

    asked = 0

    def forward(self, wave, lengths=None):
        self.asked += len(wave)
        return super().forward(wave, lengths)


@pytest.fixture
def teacher(checkpoint):
    plain = load_teacher(str(checkpoint("hubert")))
    return Counting(plain.encoder, plain.layers, plain.name, "fp32")


def spoken(voice, *seconds, seed=0):
    """A microbatch of waves: (B, T), lengths, keys."""
    waves = [voice(s, seed + i) for i, s in enumerate(seconds)]
    out = np.zeros((len(waves), max(map(len, waves))), np.float32)
    for row, wave in zip(out, waves, strict=True):
        row[: len(wave)] = wave
    return torch.from_numpy(out), torch.tensor([len(w) for w in waves]), [audio_key(w) for w in waves]


def segments(folder):
    return sorted(folder.glob("targets-*/*.bin"))


def test_what_is_read_is_what_was_computed_to_the_bit(teacher, voice, tmp_path):
    batch = spoken(voice, 1.0, 0.7, 1.3)
    cold = TargetCache(tmp_path, 1, teacher, CPU)(*batch)
    plain = teacher(*batch[:2])
    warm = TargetCache(tmp_path, 1, teacher, CPU)
    asked = teacher.asked
    again = warm(*batch)
    assert teacher.asked == asked and warm.read == 3 and warm.computed == 0
    assert torch.equal(again.hidden, cold.hidden) and torch.equal(again.lengths, plain.lengths)
    for row, count in enumerate(plain.lengths.tolist()):
        ours, theirs = again.hidden[row, :, :count], plain.hidden[row, :, :count]
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=2**-10)  # half precision


def test_a_microbatch_that_is_half_known_is_half_computed(teacher, voice, tmp_path):
    wave, lengths, keys = spoken(voice, 1.0, 0.7, 1.3)
    cache = TargetCache(tmp_path, 1, teacher, CPU)
    cache(wave[1:2, : lengths[1]], lengths[1:2], keys[1:2])
    mixed = cache(wave, lengths, keys)
    assert teacher.asked == 1 + 2
    plain = teacher(wave, lengths)
    for row, count in enumerate(plain.lengths.tolist()):
        torch.testing.assert_close(mixed.hidden[row, :, :count], plain.hidden[row, :, :count], atol=1e-3, rtol=1e-3)


def test_another_teacher_layers_norm_or_precision_is_never_served(checkpoint, teacher, voice, tmp_path, caplog):
    batch = spoken(voice, 0.5)
    TargetCache(tmp_path, 1, teacher, CPU)(*batch)
    encoder = teacher.encoder
    others = [Counting(encoder, (1, 2)), Counting(encoder, teacher.layers, target_norm="layer")]
    others.append(Counting(load_teacher(str(checkpoint("hubert"))).encoder, teacher.layers, precision="fp32"))
    with torch.no_grad():
        next(others[-1].encoder.parameters()).mul_(1 + 1e-3)
    for other in others:
        with caplog.at_level(logging.WARNING):
            cache = TargetCache(tmp_path, 1, other, CPU)
        assert "holds targets of another teacher" in caplog.text
        cache(*batch)
        assert other.asked == 1
        caplog.clear()
    assert len(segments(tmp_path)) == 4


def test_a_changed_file_is_another_key(voice):
    wave = voice(0.5)
    other = wave.copy()
    other[100] += 1e-4
    assert len({audio_key(wave), audio_key(other), audio_key(wave[1:]), audio_key(wave[:-1])}) == 4


@pytest.mark.parametrize("harm", ["cut", "flip", "index", "gone", "half a row"])
def test_a_damaged_entry_is_computed_again(teacher, voice, tmp_path, harm, caplog):
    batch = spoken(voice, 0.6, 0.8)
    first = TargetCache(tmp_path, 1, teacher, CPU)
    expected = first(*batch).hidden
    first.close()
    data = segments(tmp_path)[0]
    index = data.with_suffix(".idx")
    content = bytearray(data.read_bytes())
    if harm == "cut":
        data.write_bytes(content[: len(content) // 3])
    elif harm == "flip":
        content[10] ^= 1
        content[-10] ^= 1
        data.write_bytes(content)
    elif harm == "index":
        index.write_bytes(bytes(index.stat().st_size))
    elif harm == "gone":
        data.unlink()
    else:
        index.write_bytes(index.read_bytes()[:-5])
    asked = teacher.asked
    for _ in range(2):  # and kept again: the next process finds it whole
        cache = TargetCache(tmp_path, 1, teacher, CPU)
        torch.testing.assert_close(cache(*batch).hidden, expected, atol=1e-3, rtol=1e-3)
        cache.close()
    assert asked < teacher.asked <= asked + 2
    assert ("damaged" in caplog.text) == (harm in ("cut", "flip", "gone"))


def test_the_disk_is_bounded_and_a_full_cache_still_serves(teacher, voice, tmp_path, caplog):
    batch = spoken(voice, 1.0, 1.0, 1.0)
    size = 3 * 49 * 64 * 2
    cache = TargetCache(tmp_path, 2.5 * size / 1e9, teacher, CPU)
    for row in range(3):
        cache(batch[0][row : row + 1], batch[1][row : row + 1], batch[2][row : row + 1])
    asked = teacher.asked
    cache(*batch)
    assert teacher.asked == asked + 1
    assert sum(file.stat().st_size for file in segments(tmp_path)) == 2 * size
    assert caplog.text.count("is full") == 1


def test_targets_that_no_half_can_hold_are_used_but_not_kept(teacher, voice, tmp_path):
    class Loud(Counting):
        def forward(self, wave, lengths=None):
            out = super().forward(wave, lengths)
            out.hidden[0] *= 1e6
            return out

    loud = Loud(teacher.encoder, teacher.layers, precision="fp32")
    batch = spoken(voice, 0.6, 0.8)
    cache = TargetCache(tmp_path, 1, loud, CPU)
    first = cache(*batch).hidden
    assert bool(torch.isfinite(first).all()) and float(first[0].abs().max()) > 65504
    cache(*batch)
    assert loud.asked == 3


def _fill(folder, path, voice, seeds, die):
    torch.set_num_threads(1)
    cache = TargetCache(folder, 1, load_teacher(path, precision="fp32"), CPU)
    for seed in seeds:
        cache(*spoken(voice, 0.5, seed=seed))
    if die:
        os.kill(os.getpid(), 9)


def test_several_writers_share_and_a_killed_one_leaves_what_it_had(checkpoint, teacher, voice, tmp_path):
    context = multiprocessing.get_context("fork")
    path = str(checkpoint("hubert"))
    jobs = [
        context.Process(target=_fill, args=(tmp_path, path, voice, seeds, die))
        for seeds, die in (([0, 1, 2], True), ([2, 3, 4], False))
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    cache = TargetCache(tmp_path, 1, load_teacher(path, precision="fp32"), CPU)
    for seed in range(5):
        cache(*spoken(voice, 0.5, seed=seed))
    assert cache.read == 5 and cache.computed == 0


def test_a_process_sees_what_another_stored_meanwhile(teacher, voice, tmp_path):
    one, other = (TargetCache(tmp_path, 1, teacher, CPU) for _ in range(2))
    one(*spoken(voice, 0.5))
    other(*spoken(voice, 0.5))
    assert other.read == 1


def test_a_place_that_cannot_hold_a_cache_is_one_sentence(teacher, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name a folder that can be written"):
        TargetCache(tmp_path / "file", 1, teacher, CPU)
    cache = TargetCache(tmp_path, 1, teacher, CPU)
    (cache.folder / "identity.json").write_text("{}")
    with pytest.raises(UserError, match="delete that folder"):
        TargetCache(tmp_path, 1, teacher, CPU)
    with pytest.raises(UserError, match=r"set data\.fixed_crops"):
        load_recipe(None, [f"teacher.cache={tmp_path}"])


def run(checkpoint, speech, out, *overrides, **options):
    recipe = load_recipe(
        None, [*FIELDS, *overrides], teacher__model=str(checkpoint("hubert")), data__speech=[str(speech)]
    )
    result = distill(recipe, out, **options)
    weights = load_file(checkpoints.available(out)[-1] / "model.safetensors")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return result, weights, [row["train/loss"] for row in rows if "train/loss" in row]


class StopAt(Observer):
    def step(self, step, metrics):
        if step == 5:
            raise RuntimeError("accident")


def test_a_warm_run_and_a_resumed_one_are_the_cold_one(checkpoint, speech, tmp_path):
    cold = run(checkpoint, speech, tmp_path / "cold", f"teacher.cache={tmp_path / 'cache'}")
    warm = run(checkpoint, speech, tmp_path / "warm", f"teacher.cache={tmp_path / 'cache'}", "data.workers=2")
    other = f"teacher.cache={tmp_path / 'other'}"
    with pytest.raises(RuntimeError, match="accident"):
        run(checkpoint, speech, tmp_path / "broken", other, observer=StopAt())
    resumed = run(checkpoint, speech, tmp_path / "broken", other, resume=True)
    assert cold[0].cache["computed"] > 0 and cold[0].cache["read"] > 0
    assert warm[0].cache["computed"] == 0 and warm[0].cache["bytes_held"] == cold[0].cache["bytes_held"] > 0
    for loss in (warm[2], resumed[2]):
        assert loss == cold[2]
    for name, values in cold[1].items():
        assert torch.equal(warm[1][name], values) and torch.equal(resumed[1][name], values)
    plain = run(checkpoint, speech, tmp_path / "plain")
    np.testing.assert_allclose(cold[2], plain[2], rtol=1e-3)  # half precision of the targets


def test_another_student_and_another_seed_find_the_same_targets(checkpoint, speech, tmp_path):
    place = f"teacher.cache={tmp_path / 'cache'}"
    split = "data.valid_fraction=0.01"
    run(checkpoint, speech, tmp_path / "one", place, split)
    second = run(checkpoint, speech, tmp_path / "two", place, split, "training.seed=7", "student.layers=1")
    assert second[0].cache["read"] > 5 * second[0].cache["computed"]


TARGETS = {
    "hubert": [0.0609, 0.3452, 0.9375, 0.9979, 0.9976, 0.8003],
    "wavlm": [0.0535, 0.3394, 0.9566, 0.9979, 0.9976, 0.8004],
    "whisper": [-0.6995, 0.5272, -0.3422, 1.0001, 1.0001, 0.8148],
}
"""What teachers of given weights make of a given wave in target format 1."""


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_are_those_of_their_format(checkpoint, voice, kind):
    """Where this fails for a reason, raise `target_cache.FORMAT`, so that kept targets are not taken for the new ones."""
    teacher = load_teacher(str(checkpoint(kind)), precision="fp32")
    with torch.no_grad():
        for name, p in sorted(teacher.encoder.named_parameters()):
            values = np.random.Generator(np.random.Philox(key=len(name))).standard_normal(p.numel()).reshape(p.shape)
            gain = p.dim() == 1 and "weight" in name
            p.copy_(torch.from_numpy(values * (0.1 if p.dim() > 1 else 0.02) + gain))
    wave, lengths = torch.zeros(2, 9600), torch.tensor([9600, 7000])
    for row, count in zip(wave, lengths.tolist(), strict=True):
        row[:count] = torch.from_numpy(voice(0.6, 1))[:count]
    h = teacher(wave, lengths).hidden
    found = [h[0, 0, 5, 3], h[0, 1, 20, 10], h[1, 2, 15, 7], h[0].std(), h[1, :, :21].std(), h[0].abs().mean()]
    torch.testing.assert_close(torch.stack(found), torch.tensor(TARGETS[kind]), rtol=0, atol=5e-3)
    assert target_cache.FORMAT == 1
