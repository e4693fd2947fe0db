"""Laws of the feature streams: every utterance once, interruption without trace, bounded batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdistiller.errors import UserError
from robustdistiller.evaluation.features import FeatureStream, extract, make_plan, require_space

LENGTHS = [800 + 320 * (k % 7) for k in range(23)]


class Model:
    """Two states of three dimensions that tell utterances apart; counts what it hears."""

    name, digest, num_parameters, state_names = "toy", "0", 0, ("a", "b")

    def __init__(self, fail_after=None):
        self.heard, self.fail_after = 0, fail_after

    def states(self, wave, lengths):
        if self.fail_after is not None and self.heard >= self.fail_after:
            raise KeyboardInterrupt
        self.heard += len(wave)
        frames = (lengths - 400) // 320 + 1
        time = torch.arange(int(frames.max()))[None, None, :, None]
        return wave[:, :1, None, None] + time + torch.tensor([0.0, 10.0])[:, None, None] * torch.ones(3), frames


def render(indices):
    lengths = torch.tensor([LENGTHS[i] for i in indices])
    wave = torch.zeros(len(indices), int(lengths.max()))
    wave[:, 0] = torch.tensor([float(i) for i in indices])
    return wave, lengths


PLAN = make_plan([n / 16_000 for n in LENGTHS], batch_seconds=0.5, shard_seconds=1.0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.1, 30), min_size=1, max_size=60), st.floats(1, 60), st.floats(1, 300))
def test_a_plan_holds_every_utterance_once_in_bounded_batches(seconds, batch, shard):
    plan = make_plan(seconds, batch, shard)
    assert sorted(plan.order) == list(range(len(seconds)))
    for part in (b for s in plan.shards for b in s):
        longest = max(seconds[i] for i in part)
        assert len(part) == 1 or len(part) * longest <= batch + 1e-9
    assert plan == make_plan(seconds, batch, shard)


def test_averaged_rows_are_means_over_valid_frames(tmp_path):
    stream = FeatureStream(tmp_path, {"a": 1})
    extract([Model()], [stream], PLAN, render, True)
    rows = stream.open().rows
    for k, length in enumerate(LENGTHS):
        last = (length - 400) // 320
        np.testing.assert_allclose(rows[k, 0], k + last / 2, atol=1e-5)
        np.testing.assert_allclose(rows[k, 1], k + last / 2 + 10, atol=1e-5)


def test_all_frames_are_kept_in_utterance_order(tmp_path):
    stream = FeatureStream(tmp_path, {"a": 1})
    extract([Model()], [stream], PLAN, render, False)
    features = stream.open()
    assert features.frames.tolist() == [(n - 400) // 320 + 1 for n in LENGTHS] and features.rows.dtype == np.float16
    for k, start in enumerate(features.starts[:-1]):
        np.testing.assert_array_equal(
            features.rows[start : start + features.frames[k], 0, 0], k + np.arange(features.frames[k])
        )


@pytest.mark.parametrize("pooled", [True, False])
def test_an_interrupted_extraction_goes_on_and_leaves_the_same_bytes(tmp_path, pooled):
    straight, broken = FeatureStream(tmp_path / "straight", {"a": 1}), FeatureStream(tmp_path / "broken", {"a": 1})
    extract([Model()], [straight], PLAN, render, pooled)
    with pytest.raises(KeyboardInterrupt):
        extract([Model(fail_after=12)], [broken], PLAN, render, pooled)
    assert not broken.finished and broken.has(0)
    rest = Model()
    extract([rest], [broken], PLAN, render, pooled)
    assert 0 < rest.heard < len(LENGTHS)
    for name in ("features.npy", "frames.npy"):
        assert (straight.folder / name).read_bytes() == (broken.folder / name).read_bytes()
    assert not list(broken.folder.glob("shard-*"))


def test_only_what_is_missing_is_computed_and_all_models_hear_the_same(tmp_path):
    heard = []

    def listening(indices):
        wave, lengths = render(indices)
        heard.append(wave)
        return wave, lengths

    first, second = Model(), Model()
    streams = [FeatureStream(tmp_path, {"m": 1}), FeatureStream(tmp_path, {"m": 2})]
    extract([first], streams[:1], PLAN, listening, True)
    batches = len(heard)
    extract([first, second], streams, PLAN, listening, True)
    assert first.heard == second.heard == len(LENGTHS) and len(heard) == 2 * batches


def test_another_key_is_another_stream(tmp_path):
    assert FeatureStream(tmp_path, {"a": 1}).folder != FeatureStream(tmp_path, {"a": 2}).folder
    assert FeatureStream(tmp_path, {"a": 1}).folder == FeatureStream(tmp_path, {"a": 1}).folder


def test_damage_is_told_in_one_sentence(tmp_path):
    stream = FeatureStream(tmp_path, {"a": 1})
    extract([Model()], [stream], PLAN, render, True)
    (stream.folder / "features.npy").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="are damaged: delete that folder"):
        stream.open()


def test_a_disk_that_is_too_small_is_noticed_before_the_work(tmp_path):
    with pytest.raises(UserError, match=r"need about 1000000\.0 GB"):
        require_space(tmp_path, 1e15)
