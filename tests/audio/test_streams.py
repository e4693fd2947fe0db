"""Laws of streams from shards: steps are a pure function of the seed, shared out without a difference, and all is heard."""

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from robustdistiller.audio.io import SAMPLE_RATE
from robustdistiller.audio.shards import Shard, histogram
from robustdistiller.audio.streams import ShardSampler, Spool, spooled
from robustdistiller.errors import UserError
from robustdistiller.files import digest


def make_shards(folder: Path, count: int, recordings: int = 40, seed: int = 0) -> list[Shard]:
    """An index and the lengths beside it; the audio itself is no matter to a plan."""
    rng = np.random.default_rng(seed)
    shards = []
    for number in range(count):
        samples = rng.integers(8_000, 6 * SAMPLE_RATE, recordings).tolist()
        (folder / f"{number}.json").write_text(json.dumps({"samples": samples}))
        seconds = [n / SAMPLE_RATE for n in samples]
        bins = {int(k): (int(c), s) for k, (c, s) in histogram(seconds).items()}
        shards.append(
            Shard(
                str(folder / f"{number}.tar"), 1_000_000, f"d{number}", recordings, sum(seconds), digest(samples), None, (),
                bins,
            )
        )  # fmt: skip
    return shards


def plan(shards, step, rank=0, world=1, slots=1, **more):
    return ShardSampler(
        shards, 10.0 * slots, 4.0, 0.5, seed=3, rank=rank, world=world, microbatch_seconds=10.0, window_mb=2, **more
    ).batch(step)


def test_a_step_is_the_same_however_it_is_reached_and_in_every_process(tmp_path):
    shards = make_shards(tmp_path, 9)
    straight = ShardSampler(shards, 20.0, 4.0, 0.5, seed=3, microbatch_seconds=10.0, window_mb=2)
    batches = [straight.batch(step) for step in range(60)]
    assert [straight.batch(step) for step in reversed(range(60))] == batches[::-1]
    for step in (0, 17, 59):
        assert plan(shards, step, slots=2) == batches[step]
        assert pickle.loads(pickle.dumps(straight)).batch(step) == batches[step]
    assert plan(shards, 5, slots=2) != plan(shards, 6, slots=2)
    assert all((crop.samples - 400) % (8 * 320) == 7 * 320 for crop in plan(shards, 5, frame_multiple=8).parts[0])


@pytest.mark.parametrize("count", [1, 3, 9])
def test_processes_and_microbatches_share_the_same_global_batch(tmp_path, count):
    shards = make_shards(tmp_path, count)
    for step in range(0, 200, 37):
        whole = plan(shards, step, slots=4)
        halves = [plan(shards, step, rank, 2, 4) for rank in range(2)]
        quarters = [plan(shards, step, rank, 4, 4) for rank in range(4)]
        eighths = [plan(shards, step, rank, 8, 4) for rank in range(8)]  # the slots are cut
        assert {crop for part in eighths for crop in part.parts[0]} == {crop for part in whole.parts for crop in part}
        assert whole.parts == sum((part.parts for part in halves), ()) == sum((part.parts for part in quarters), ())
        assert {part.planned_frames for part in (whole, *halves, *quarters, *eighths)} == {
            sum((crop.samples - 400) // 320 + 1 for part in whole.parts for crop in part)
        }


@pytest.mark.parametrize(("count", "slots"), [(12, 1), (12, 4), (2, 4)])
def test_an_epoch_hears_nearly_all_and_nothing_twice_in_the_same_way(tmp_path, count, slots):
    shards = make_shards(tmp_path, count)
    sampler = ShardSampler(shards, 10.0 * slots, 4.0, 0.5, seed=1, microbatch_seconds=10.0, window_mb=3)
    epochs = 3
    crops = [c for s in range(round(epochs * sampler.steps_per_epoch)) for p in sampler.batch(s).parts for c in p]
    visits = Counter((crop.shard, crop.index) for crop in crops)
    assert len({(crop.shard, crop.index, crop.epoch) for crop in crops}) > 0.9 * len(crops)
    assert len(visits) > 0.98 * count * 40 and np.mean(list(visits.values())) == pytest.approx(epochs, rel=0.15)
    lengths = [shard.samples() for shard in shards]
    for crop in crops:
        assert crop.start >= 0 and crop.start + crop.samples <= lengths[crop.shard][crop.index]
    assert all(sum(c.samples for c in p) <= 10.2 * SAMPLE_RATE for s in range(50) for p in sampler.batch(s).parts)


def test_fixed_crops_all_have_their_turn_and_no_others(tmp_path):
    shards = make_shards(tmp_path, 4)
    sampler = ShardSampler(shards, 10.0, 1.0, 0.5, seed=1, window_mb=1, fixed_crops=3)
    found: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for step in range(round(12 * sampler.steps_per_epoch)):
        for crop in sampler.batch(step).parts[0]:
            found.setdefault((crop.shard, crop.index), set()).add((crop.start, crop.samples))
    possible = {
        (number, index): int(np.clip(np.ceil((length * 0.95 - 320) / SAMPLE_RATE), 1, 3))
        for number, shard in enumerate(shards)
        for index, length in enumerate(shard.samples())
    }
    assert all(len(crops) <= possible[key] for key, crops in found.items())
    assert sum(map(len, found.values())) > 0.95 * sum(possible.values())


def test_a_plan_reads_the_lengths_of_its_own_windows_only(tmp_path):
    shards = make_shards(tmp_path, 9)
    far = plan(shards, 900)
    heard = {crop.shard for crop in far.parts[0]}
    now, _ = ShardSampler(shards, 10.0, 4.0, 0.5, seed=3, window_mb=2).needed(900)
    assert heard <= now and len(now) == 2
    for number in set(range(9)) - now:
        (tmp_path / f"{number}.json").unlink()
    assert plan(shards, 900) == far


def test_what_cannot_be_planned_is_refused_before_any_work(tmp_path):
    shards = make_shards(tmp_path, 2)
    with pytest.raises(UserError, match="holds less than one crop"):
        ShardSampler(shards, 2.0, 4.0)
    with pytest.raises(UserError, match="No shard holds speech of 9 s"):
        ShardSampler(shards, 10.0, 4.0, 9.0)


def stored(folder: Path, count: int) -> list[Shard]:
    """Shards that can be copied, if not understood."""
    import hashlib

    shards = []
    for number in range(count):
        content = bytes([number]) * (5000 + number)
        (folder / f"{number}.tar").write_bytes(content)
        total = hashlib.blake2b(content, digest_size=16).hexdigest()
        shards.append(Shard(str(folder / f"{number}.tar"), len(content), total, 1, 1.0, "", None, (), {10: (1, 1.0)}))
    return shards


def test_the_spool_holds_what_is_needed_and_lets_go_of_the_rest(tmp_path):
    shards, rows = stored(tmp_path, 6), []
    spool = Spool(shards, tmp_path / "spool", rows.append)
    for step, (now, soon) in enumerate([({0, 1}, {2, 3}), ({0, 1}, {2, 3}), ({2, 3}, {4}), ({4}, {5}), ({4}, {5})]):
        spool.need(step, now, soon, linger=1)
        assert all(spooled(spool.folder, n).read_bytes() == Path(shards[n].path).read_bytes() for n in now)
    assert not spooled(spool.folder, 0).exists() and not spooled(spool.folder, 2).exists() and not rows
    spool.close()
    assert not spool.folder.exists()


def test_a_shard_that_is_lost_in_mid_run_gives_way_and_is_written_down(tmp_path, caplog):
    shards, rows = stored(tmp_path, 6), []
    spool = Spool(shards, tmp_path / "spool", rows.append)
    Path(shards[2].path).unlink()
    Path(shards[3].path).write_bytes(b"short")
    spool.need(7, {1, 2, 3}, set(), linger=0)
    for number in (2, 3):
        content = spooled(spool.folder, number).read_bytes()
        assert content in [Path(s.path).read_bytes() for k, s in enumerate(shards) if k not in (2, 3)]
    assert {(Path(row["path"]).name, row["reason"]) for row in rows} >= {("2.tar", "missing"), ("3.tar", "truncated")}
    assert all(row["step"] == 7 for row in rows) and "Another shard takes its place" in caplog.text
    for shard in shards:
        Path(shard.path).unlink(missing_ok=True)
    with pytest.raises(UserError, match="is their storage still there"):
        spool.need(8, {5}, set(), linger=0)
    spool.close()
