"""The laws of the sampler: nothing padded, everybody heard, a batch a function of (seed, step) alone."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdistiller.audio.batching import Crop, LengthBucketSampler, Microbatches
from robustdistiller.audio.io import SAMPLE_RATE
from robustdistiller.errors import UserError

corpora = st.lists(st.floats(0.1, 40), min_size=1, max_size=120)
few = settings(max_examples=40, deadline=None)


def everyone(sampler: LengthBucketSampler, step: int) -> list[Crop]:
    """The global batch: what all ranks and microbatches hear in a step."""
    return [crop for rank in range(sampler.world) for part in sampler.batch(step, rank).parts for crop in part]


@few
@given(corpora, st.floats(4, 60), st.sampled_from([0.0, 0.05, 0.3]), st.integers(1, 3), st.integers(1, 3))
def test_nothing_is_padded_in_any_microbatch(seconds, batch, trim, world, accumulate):
    whole_seconds = world * accumulate * batch
    sampler = LengthBucketSampler(seconds, whole_seconds, min(4, batch), 0.1, trim, 3, 0, world, batch)
    assert sampler.accumulate == accumulate
    for step in range(min(sampler.steps_per_plan, 30)):
        for rank in range(world):
            for part in sampler.batch(step, rank).parts:
                lengths = np.array([crop.samples for crop in part])
                assert len(lengths)
                assert (lengths == lengths[0]).all()
                assert (len(lengths) - 1) * lengths.max() < batch * SAMPLE_RATE
        whole = everyone(sampler, step)
        assert len(whole) * max(crop.samples for crop in whole) <= world * accumulate * batch * SAMPLE_RATE + 1


def test_crops_of_a_multiple_of_frames_have_few_lengths_and_lose_less_than_a_multiple():
    seconds = np.random.default_rng(0).gamma(4, 3, size=3000).clip(0.3, 30)
    free, cut = (LengthBucketSampler(seconds, 60, 15.625, 0.3, seed=2, frame_multiple=count) for count in (1, 8))
    lengths = set()
    for step in range(free.steps_per_plan):
        planned = cut.batch(step)
        for crop, other in zip(planned.parts[0], free.batch(step).parts[0], strict=True):
            assert (crop.index, crop.epoch) == (other.index, other.epoch)
            assert 0 <= other.samples - crop.samples < 8 * 320
            assert crop.start + crop.samples <= seconds[crop.index] * SAMPLE_RATE
            lengths.add(crop.samples)
            assert ((crop.samples - 400) // 320 + 1) % 8 == 0
        assert planned.planned_frames == sum((crop.samples - 400) // 320 + 1 for crop in planned.parts[0])
    assert len(lengths) <= 97 < len({free.batch(step).parts[0][0].samples for step in range(free.steps_per_plan)})


@few
@given(corpora, st.floats(4, 60))
def test_every_recording_is_visited_once_per_epoch(seconds, batch):
    sampler = LengthBucketSampler(seconds, batch, 4.0, 0.1, seed=1)
    for plan in range(2):
        steps = range(plan * sampler.steps_per_plan, (plan + 1) * sampler.steps_per_plan)
        visits = Counter((crop.index, crop.epoch) for step in steps for crop in everyone(sampler, step))
        epochs = range(plan * sampler.passes, (plan + 1) * sampler.passes)
        assert set(visits) == {(i, e) for i, s in enumerate(seconds) for e in epochs if s >= 0.1}
        twice = [key for key, count in visits.items() if count > 1]
        assert set(visits.values()) <= {1, 2}
        assert len(twice) < max(len(everyone(sampler, step)) for step in steps)


def test_an_epoch_of_a_real_sized_corpus_is_one_pass_that_loses_little():
    seconds = np.random.default_rng(0).gamma(4, 3, size=5000).clip(1, 30)
    sampler = LengthBucketSampler(seconds, 96, 15.625, 0.5, seed=2)
    assert sampler.passes == 1
    batches = [everyone(sampler, step) for step in range(sampler.steps_per_plan)]
    heard = sum(crop.samples for batch in batches for crop in batch)
    assert heard >= 0.97 * SAMPLE_RATE * np.minimum(seconds, 15.625).sum()
    fill = [len(batch) * max(crop.samples for crop in batch) / (96 * SAMPLE_RATE) for batch in batches]
    assert np.mean(fill) > 0.9
    orders = [[crop.index for crop in everyone(sampler, step)] for step in (0, sampler.steps_per_plan)]
    assert orders[0] != orders[1]


@few
@given(corpora, st.integers(0, 10_000), st.integers(0, 3))
def test_a_batch_is_a_function_of_seed_and_step(seconds, step, seed):
    options = dict(batch_seconds=20, crop_seconds=5, min_seconds=0.1, seed=seed, world=2)
    straight = LengthBucketSampler(seconds, **options)
    for earlier in range(3):  # a different history
        straight.batch(earlier)
    resumed = pickle.loads(pickle.dumps(LengthBucketSampler(list(seconds), rank=1, **options)))
    assert straight.batch(step, rank=1) == resumed.batch(step)
    assert straight.batch(step) == resumed.batch(step, rank=0)


@few
@given(corpora, st.integers(0, 500))
def test_the_global_batch_does_not_depend_on_how_the_work_is_shared(seconds, step):
    def heard(microbatch_seconds, world):
        sampler = LengthBucketSampler(seconds, 60, 5.0, 0.1, seed=4, world=world, microbatch_seconds=microbatch_seconds)
        crops = everyone(sampler, step)
        assert len(set(crops)) == len(crops)  # shares are disjoint
        return set(crops), sampler.batch(step).planned_frames

    reference = heard(60, 1)
    for microbatch_seconds, world in ((60, 2), (30, 1), (15, 2), (15, 3), (30, 4), (60, 5), (7, 1), (60, 8)):
        assert heard(microbatch_seconds, world) == reference


@few
@given(corpora, st.integers(0, 500))
def test_crops_lie_within_their_recordings_and_frames_are_counted(seconds, step):
    sampler = LengthBucketSampler(seconds, 30, 5.0, 0.1, world=2)
    crops = everyone(sampler, step)
    for crop in crops:
        assert 0.1 * SAMPLE_RATE - 1 <= crop.samples <= 5 * SAMPLE_RATE
        assert crop.start >= 0 and crop.start + crop.samples <= seconds[crop.index] * SAMPLE_RATE + 1
    assert sampler.batch(step).planned_frames == sum((crop.samples - 400) // 320 + 1 for crop in crops)


def test_one_recording_fills_batches_with_different_crops():
    sampler = LengthBucketSampler([3600.0], 40, 5.0, world=2)
    crops = everyone(sampler, 0)
    assert len(crops) == 8 and len({crop.start for crop in crops}) == 8 and len({crop.epoch for crop in crops}) == 8


def test_seeds_and_epochs_change_the_crops():
    batch = [LengthBucketSampler([50.0] * 9, 20, 5.0, seed=seed).batch(0) for seed in (0, 1)]
    assert isinstance(batch[0], Microbatches) and batch[0].parts != batch[1].parts


def test_nothing_long_enough_is_the_users_mistake():
    with pytest.raises(UserError, match="min_seconds"):
        LengthBucketSampler([0.1, 0.2], 20, 5.0, 0.5)
    with pytest.raises(UserError, match="min_seconds"):
        LengthBucketSampler([], 20, 5.0, 0.5)
    with pytest.raises(UserError, match="batch_seconds"):
        LengthBucketSampler([30.0], 4, 5.0)
    with pytest.raises(UserError, match=r"5 s, for each of 8 microbatches of 8 processes: .*start fewer processes"):
        LengthBucketSampler([30.0], 35, 5.0, world=8)
    with pytest.raises(UserError, match="crop_seconds"):
        LengthBucketSampler([30.0], 4, 0.2, 0.5)


def test_a_million_recordings_are_planned_in_seconds():
    seconds = np.random.default_rng(0).uniform(0.5, 30, 1_000_000)
    sampler = LengthBucketSampler(seconds, 768, 15.625, 0.5, world=8)
    assert len(sampler.batch(sampler.steps_per_plan + 7).parts[0]) >= 6


@few
@given(corpora, st.floats(4, 60), st.sampled_from([0.0, 0.05, 0.3]), st.integers(1, 3), st.integers(0, 3))
def test_fixed_crops_come_again_whatever_the_seed_the_epoch_and_the_company(seconds, batch, trim, crops, seed):
    options = dict(batch_seconds=batch, crop_seconds=4.0, min_seconds=0.1, max_trim=trim, fixed_crops=crops)
    places: dict[float, set[tuple[int, int]]] = {}
    for company, seeds in ((seconds, (seed, seed + 1)), ([*seconds, 3.3, 0.4, 17.0], (seed,))):
        for number in seeds:
            sampler = LengthBucketSampler(company, seed=number, **options)
            for step in range(min(2 * sampler.steps_per_plan, 60)):
                whole = everyone(sampler, step)
                assert len(whole) * max(crop.samples for crop in whole) <= batch * SAMPLE_RATE + 1
                for crop in whole:
                    assert 0 <= crop.start <= sampler.whole[crop.index] - crop.samples
                    places.setdefault(company[crop.index], set()).add((crop.start, crop.samples))
    for length, found in places.items():
        heard = min(length, 4.0) * SAMPLE_RATE
        assert len(found) <= crops and (len(found) == 1 or length > 4.0 * (1 - trim))
        assert all(heard * (1 - trim) - 321 <= samples <= heard + 1 for _, samples in found)


def test_fixed_crops_of_a_real_sized_corpus_are_hardly_padded_and_everybody_is_heard():
    seconds = np.random.default_rng(0).gamma(4, 3, size=5000).clip(1, 30)
    sampler = LengthBucketSampler(seconds, 96, 15.625, 0.5, fixed_crops=1)
    batches = [everyone(sampler, step) for step in range(sampler.steps_per_plan)]
    assert {crop.index for batch in batches for crop in batch} == set(range(len(seconds)))
    heard = sum(crop.samples for batch in batches for crop in batch)
    assert heard >= 0.96 * SAMPLE_RATE * np.minimum(seconds, 15.625).sum()
    assert sum(len(batch) * max(crop.samples for crop in batch) for batch in batches) <= 1.02 * heard
