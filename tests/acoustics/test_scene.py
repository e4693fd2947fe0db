"""The laws of the acoustic environment, each on random input and against a computation of its own."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from acoustics_material import RATE, Make, audible, decibels, power, speechlike
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, fftconvolve, sosfiltfilt
from torch.utils._python_dispatch import TorchDispatchMode

from robustdistiller.acoustics import mixing
from robustdistiller.acoustics.contamination import contaminate
from robustdistiller.acoustics.curriculum import progress, snr_limits
from robustdistiller.acoustics.environment import Environment, fixed_scene
from robustdistiller.acoustics.noise import NoiseBank, NoiseDraw
from robustdistiller.acoustics.rooms import RoomBank
from robustdistiller.acoustics.scene import Scene
from robustdistiller.audio.manifest import Recording
from robustdistiller.config import EnvironmentConfig, NoiseMix
from robustdistiller.errors import AudioError, UserError
from robustdistiller.randomness import generator

utterances = st.lists(st.integers(1600, 30_000), min_size=1, max_size=6)


def _speech(counts: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    clean = np.zeros((len(counts), max(counts)), np.float32)
    for row, count in zip(clean, counts, strict=True):
        row[:count] = speechlike(rng, count) * 10 ** rng.uniform(-2, 0.5)
    return torch.from_numpy(clean), torch.tensor(counts)


def _noise(environment: Environment, scenes: list[Scene], counts: list[int], width: int) -> torch.Tensor:
    out = torch.zeros(len(scenes), width)
    for row, scene, count in zip(out, scenes, counts, strict=True):
        wave = environment.fetch(scene, count)
        if wave is not None:
            row[:count] = torch.from_numpy(wave)
    return out


def _scenes(environment: Environment, counts: list[int], seed: int, step: int = 0) -> list[Scene]:
    return [environment.draw(f"utt-{seed}-{i}", n / RATE, epoch=seed, step=step) for i, n in enumerate(counts)]


def _reference(environment: Environment, scene: Scene, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(reverberant speech, scaled noise) in float64, one utterance at a time and in the plainest way."""
    clean = clean.astype(np.float64)
    wet, noise = clean, np.zeros_like(clean)
    if scene.room:
        response = environment.rooms.load(scene.room)
        wet = fftconvolve(clean, response.samples.astype(np.float64))[response.direct :][: len(clean)]
        wet = wet * np.sqrt(audible(clean) / audible(wet))
    if scene.noises:
        noise = environment.fetch(scene, len(clean)).astype(np.float64)
        if scene.noise_room:
            response = environment.rooms.load(scene.noise_room).samples.astype(np.float64)
            turns = len(response) // len(noise) + 2  # it has been sounding for long
            noise = fftconvolve(np.tile(noise, turns), response)[(turns - 1) * len(noise) :][: len(noise)]
        noise = noise * np.sqrt(audible(wet) / power(noise) / 10 ** (scene.snr_db / 10))
    return wet, noise


@settings(deadline=None, max_examples=25)
@given(utterances, st.integers(0, 10**6), st.booleans())
def test_what_is_heard_is_the_plain_computation(
    environment: Environment, counts: list[int], seed: int, in_room: bool
) -> None:
    heard_in = Environment(
        environment.config.model_copy(update={"noise_in_room": in_room}), environment.noise, environment.rooms
    )
    clean, lengths = _speech(counts, seed)
    scenes = _scenes(heard_in, counts, seed)
    before = clean.clone()
    heard = heard_in.render(clean, lengths, _noise(heard_in, scenes, counts, clean.shape[1]), scenes)
    assert heard.dtype == torch.float32 and torch.equal(clean, before)
    for scene, x, y, count in zip(scenes, clean.numpy(), heard.numpy(), counts, strict=True):
        wet, noise = _reference(heard_in, scene, x[:count])
        expected = wet + noise
        np.testing.assert_allclose(y[:count], expected, atol=1e-5 * np.abs(expected).max())
        assert bool(scene.noise_room) == (in_room and scene.kind == "both")


@settings(deadline=None, max_examples=25)
@given(utterances, st.integers(0, 10**6), st.floats(-60, 60), st.booleans())
def test_realised_snr_is_the_snr_asked(
    plain: Environment, counts: list[int], seed: int, snr_db: float, room: bool
) -> None:
    clean, lengths = _speech(counts, seed)
    noise = ["pink", "rain"] if seed % 2 else "babble"
    scenes = [
        fixed_scene(plain, f"u{i}", n / RATE, seed, snr_db, noise, "hall" if room else None, noise_in_room=seed % 3 > 0)
        for i, n in enumerate(counts)
    ]
    heard = plain.render(clean, lengths, _noise(plain, scenes, counts, clean.shape[1]), scenes)
    silent = [replace(scene, snr_db=None, noises=()) for scene in scenes]
    wet = plain.render(clean, lengths, None, silent)
    for y, x, count in zip(heard.double().numpy(), wet.double().numpy(), counts, strict=True):
        assert decibels(audible(x[:count]) / power((y - x)[:count])) == pytest.approx(snr_db, abs=0.05)


@settings(deadline=None, max_examples=20)
@given(st.integers(8000, 40_000), st.integers(0, 10**6))
def test_reverberation_does_not_move_speech_in_time(environment: Environment, count: int, seed: int) -> None:
    clean, lengths = _speech([count], seed)
    for id in (environment.rooms.ids[seed % len(environment.rooms)], "hall-1", "den-2"):
        wet = environment.render(clean, lengths, None, [Scene("u", kind="reverb", room=id)])
        correlation = fftconvolve(wet[0].double().numpy(), clean[0].double().numpy()[::-1])
        assert np.argmax(np.abs(correlation)) - (count - 1) == 0
        assert correlation[count - 1] > 0  # nor turn it over


@settings(deadline=None, max_examples=20)
@given(utterances, st.integers(0, 10**6))
def test_reverberation_keeps_the_level(environment: Environment, counts: list[int], seed: int) -> None:
    clean, lengths = _speech(counts, seed)
    ids = environment.rooms.ids
    scenes = [Scene(f"u{i}", kind="reverb", room=ids[(seed + i) % len(ids)]) for i in range(len(counts))]
    wet = environment.render(clean, lengths, None, scenes)
    for x, y, count in zip(clean.numpy(), wet.numpy(), counts, strict=True):
        assert decibels(audible(y[:count]) / audible(x[:count])) == pytest.approx(0, abs=1e-3)


@settings(deadline=None, max_examples=25)
@given(utterances, st.integers(0, 10**6), st.integers(0, 20_000), st.randoms(use_true_random=False))
def test_neither_batch_nor_padding_nor_order_changes_a_bit(
    environment: Environment, counts: list[int], seed: int, padding: int, random
) -> None:
    counts = [n for n in counts for _ in range(2)]  # rows of equal length share an FFT
    clean, _ = _speech(counts, seed)
    scenes = _scenes(environment, counts, seed)
    order = list(range(len(counts)))
    random.shuffle(order)
    wide = torch.full((len(order), max(counts) + padding), 7.0)  # rubbish in the padding must not matter either
    noise = torch.full_like(wide, float("nan"))
    for row, i in enumerate(order):
        wide[row, : counts[i]] = clean[i, : counts[i]]
        wave = environment.fetch(scenes[i], counts[i])
        noise[row, : counts[i]] = 0.0 if wave is None else torch.from_numpy(wave)
    lengths = torch.tensor([counts[i] for i in order])
    together = environment.render(wide, lengths, noise, [scenes[i] for i in order])
    for row, i in enumerate(order):
        again = environment.draw(scenes[i].utterance, counts[i] / RATE, epoch=seed)
        assert again == scenes[i]
        alone, _ = contaminate(clean[i, : counts[i]].numpy(), environment, scene=again)
        assert np.array_equal(together[row, : counts[i]].numpy(), alone)
        assert torch.count_nonzero(together[row, counts[i] :]) == 0  # nothing is written into padding


def _render_elsewhere(pickled: bytes) -> list[bytes]:
    """In a process of its own, with an environment that travelled there: the samples of some scenes."""
    torch.set_num_threads(2)
    environment, names, count = pickle.loads(pickled)
    clean = speechlike(np.random.default_rng(0), count)
    heard = [contaminate(clean, environment, name, epoch=3)[0] for name in names]
    return [wave.tobytes() for wave in heard]


def test_another_process_hears_the_same_bits(environment: Environment) -> None:
    names = [f"name-{i}" for i in range(12)]
    here = _render_elsewhere(pickle.dumps((environment, names, 12_345)))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(_render_elsewhere, (pickle.dumps((environment, names[::-1], 12_345)),))
    assert here == there[::-1]
    assert len(set(here)) > 6


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.1, 3.0))
def test_a_scene_alone_brings_back_the_sound(environment: Environment, seed: int, seconds: float) -> None:
    clean = speechlike(np.random.default_rng(seed), round(seconds * RATE))
    heard, scene = contaminate(clean, environment, f"utt {seed}", epoch=seed)
    read_back = Scene.from_dict(json.loads(json.dumps(scene.to_dict())))
    assert read_back == scene
    assert np.array_equal(contaminate(clean, environment, scene=read_back)[0], heard)


def test_scenes_differ_between_epochs_utterances_and_seeds(environment: Environment) -> None:
    other = Environment(environment.config, environment.noise, environment.rooms, seed=6)
    drawn = [
        {replace(env.draw(name, 1.0, epoch), utterance="", epoch=0, seed=0) for epoch in range(30)}
        for env in (environment, other)
        for name in ("a", "b")
    ]
    assert len(set.union(*drawn)) > 60


def test_every_condition_comes_as_often_as_asked(noises: list, responses: list) -> None:
    config = EnvironmentConfig(clean=0.1, noise=0.2, reverb=0.3, both=0.4, noises=(1, 3))
    environment = Environment.build(config, noises, responses)
    scenes = [environment.draw(str(i), 0.1, 0) for i in range(1500)]
    kinds = Counter(scene.kind for scene in scenes)
    for kind, share in (("clean", 0.1), ("noise", 0.2), ("reverb", 0.3), ("both", 0.4)):
        assert kinds[kind] / 1500 == pytest.approx(share, abs=0.05)
    levels = Counter(scene.snr_db for scene in scenes if scene.noises)
    assert set(levels) == set(range(21))  # whole decibels, both ends as often as the others
    assert min(levels.values()) > 15 and max(levels.values()) < 80
    assert set(Counter(len(scene.noises) for scene in scenes if scene.noises)) == {1, 2, 3}
    for scene in scenes:
        assert (scene.snr_db is None) == (not scene.noises) == (scene.kind in ("clean", "reverb"))
        assert (scene.room is None) == (scene.kind in ("clean", "noise"))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 1000), st.sampled_from([0.0, 1.0, 2.5]), st.floats(10, 30))
def test_the_curriculum_goes_smoothly_from_easy_to_hard(
    environment: Environment, seed: int, steps: int, grid: float, start: float
) -> None:
    config = environment.config.model_copy(
        update={
            "snr_step_db": grid,
            "curriculum": environment.config.curriculum.model_copy(update={"steps": steps, "start_snr_db": start}),
        }
    )
    learning = Environment(config, environment.noise, environment.rooms, seed)
    without = environment.config.model_copy(update={"snr_step_db": grid})
    done = Environment(without, environment.noise, environment.rooms, seed)
    at = [learning.draw("u", 0.3, 0, step) for step in (0, steps // 3, steps // 2, steps, 5 * steps)]
    assert at[0].room is None and at[3] == at[4] == done.draw("u", 0.3, 0)
    assert all(a.noises == at[0].noises for a in at)  # the same noise throughout
    levels = [a.snr_db for a in at]
    if at[0].noises:
        assert levels[0] >= min(start, 20) - grid and levels == sorted(levels, reverse=True)
    rooms = [a.room for a in at]
    assert all(later == earlier or earlier is None for earlier, later in pairwise(rooms))
    assert snr_limits(config, 0)[0] == start and snr_limits(config, steps)[0] == 0
    assert [progress(config, step) for step in (0, steps, 9 * steps)] == [0, 1, 1]


def test_the_share_of_reverberation_rises_with_the_curriculum(noises: list, responses: list) -> None:
    config = EnvironmentConfig(curriculum={"steps": 100})
    environment = Environment.build(config, noises, responses)
    for step, share in ((0, 0.0), (50, 0.25), (100, 0.5)):
        rooms = sum(environment.draw(str(i), 0.1, 0, step).room is not None for i in range(800))
        assert rooms / 800 == pytest.approx(share, abs=0.06)
        noisy = sum(bool(environment.draw(str(i), 0.1, 0, step).noises) for i in range(800))
        assert noisy / 800 == pytest.approx(0.5, abs=0.06)


def test_silent_speech_is_left_as_it_is(environment: Environment, plain: Environment) -> None:
    for wave in (np.zeros(5000, np.float32), np.full(1, 0, np.float32), np.full(5000, 1e-9, np.float32)):
        scene = fixed_scene(plain, "u", 0.3, 0, 5, "white", "hall")
        heard, said = contaminate(wave, plain, scene=scene)
        assert np.array_equal(heard, wave) and said.snr_db is None and said.kind == "clean" and said.note
    batch = torch.zeros(2, 4000)
    batch[1] = torch.from_numpy(speechlike(np.random.default_rng(0), 4000))
    scenes = [fixed_scene(plain, "u", 0.25, 0, 5, "white", "hall")] * 2
    heard = plain.render(batch, torch.tensor([4000, 4000]), torch.randn(2, 4000), scenes)
    assert not heard[0].any() and heard[1].isfinite().all()


def test_one_sample_of_speech_is_left_as_it_is(plain: Environment) -> None:
    scene = fixed_scene(plain, "u", 1 / RATE, 0, 0.0, "white", "hall", noise_in_room=True)
    heard, said = contaminate(np.array([0.5], np.float32), plain, scene=scene)
    assert heard.tolist() == [0.5] and said.note  # all of it is its own mean
    heard, _ = contaminate(np.array([0.5, 0.2], np.float32), plain, scene=scene)
    assert heard.shape == (2,) and np.isfinite(heard).all()


def _in_band(wave: np.ndarray, low_hz: float = 50.0) -> float:
    """Power above `low_hz`, by a recursive filter, without the second that it needs to settle at either end."""
    filtered = sosfiltfilt(butter(6, low_hz, "highpass", fs=RATE, output="sos"), wave.astype(np.float64))
    return power(filtered[RATE:-RATE])


def _rumble(count: int) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 5 * np.arange(count) / RATE + 0.7)


@pytest.mark.parametrize("seconds", [8, 45])  # one block of noise, several
@pytest.mark.parametrize("where", ["noise", "speech", "babble"])
@pytest.mark.parametrize(("offset", "rumble"), [(0.05, 0), (0.15, 0), (0, 1), (-0.1, 1)])
def test_levels_are_those_of_the_audible_band(
    make_recording: Make, offset: float, rumble: int, where: str, seconds: int
) -> None:
    """A constant or infrasound is no part of an SNR: hiss under a rumble, speech with an offset, a babble of such voices."""
    rng = np.random.default_rng(0)
    inaudible = offset + rumble * _rumble(seconds * RATE)
    hiss = 0.002 * rng.standard_normal(seconds * RATE)
    noise = make_recording("hiss", hiss + (inaudible if where == "noise" else 0))
    voices = [
        make_recording(f"v{k}", speechlike(rng, seconds * RATE) * 0.02 + inaudible, speaker=f"v{k}") for k in range(4)
    ]
    speech = speechlike(rng, 6 * RATE)
    if where == "speech":
        speech = speech + np.float32(offset) + np.float32(rumble) * _rumble(6 * RATE).astype(np.float32)
    bank = NoiseBank([noise], NoiseMix(recorded=1), speech=voices)
    room = RoomBank().add_simulated(1)
    for snr_db in (0.0, 10.0):
        for through in (None, room.ids[0]):
            environment = Environment(EnvironmentConfig(), bank, room)
            kind = "babble" if where == "babble" else "hiss"
            scene = fixed_scene(environment, "u", 6.0, 0, snr_db, kind, through, noise_in_room=True)
            heard, scene = contaminate(speech, environment, scene=scene)
            wet, _ = contaminate(speech, environment, scene=replace(scene, snr_db=None, noises=()))
            assert decibels(_in_band(wet) / _in_band(heard - wet)) == pytest.approx(snr_db, abs=0.3)
            assert decibels(_in_band(wet) / _in_band(speech)) == pytest.approx(0, abs=0.3)
            assert power(heard - wet) < 1.1 * _in_band(heard - wet, 20)  # nothing inaudible is added


def test_a_constant_is_silent(make_recording: Make) -> None:
    wave = np.full(2 * RATE, 0.3, np.float32)
    bank = NoiseBank([make_recording("constant", wave)], NoiseMix(recorded=1, white=0))
    draw = bank.draw(generator(0), 1.0)
    assert draw.kind == "white" and "silent" in str(draw.note)
    environment = Environment(EnvironmentConfig(), bank)
    heard, scene = contaminate(wave, environment, scene=fixed_scene(environment, "u", 2.0, 0, 0.0, "white"))
    assert np.array_equal(heard, wave) and scene.note


def test_another_device_gives_the_same_up_to_rounding(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [8000, 8000, 8000, 12_000, 1600, 12_000]  # rows of one length are rendered together there
    clean, lengths = _speech(counts, 1)
    effects = {"gain": 0.5, "clipping": 0.5, "band_limit": 0.5}
    config = environment.config.model_copy(update={"effects": environment.config.effects.model_copy(update=effects)})
    for seed in range(4):
        env = Environment(config, environment.noise, environment.rooms, seed)
        scenes = _scenes(env, counts, seed)
        noise = _noise(env, scenes, counts, clean.shape[1])
        on_processor = env.render(clean, lengths, noise, scenes)
        with monkeypatch.context() as patch:
            patch.setattr(mixing, "_values", lambda x: x)
            elsewhere = env.render(clean, lengths, noise, scenes)
        np.testing.assert_allclose(on_processor, elsewhere, atol=2e-5 * float(on_processor.abs().max()))


def test_many_rows_take_a_device_no_more_operations_than_few(
    plain: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixing, "_values", lambda x: x)

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.names.append(str(function))
            return function(*args, **(kwargs or {}))

    counts = []
    for rows in (2, 2, 20):  # the first fills caches
        clean, noise = torch.randn(rows, 4000), torch.randn(rows, 4000)
        scenes = [fixed_scene(plain, f"u{i}", 0.25, i, 5.0, "white", "hall", noise_in_room=True) for i in range(rows)]
        with Count() as count:
            plain.render(clean, torch.full((rows,), 4000), noise, scenes)
        counts.append(len(count.names))
    assert counts[1] == counts[2]


def test_rendering_reads_nothing_from_the_device(environment: Environment) -> None:
    """A tensor on the device `meta` has no values: whatever asks for one there raises."""
    counts = [8000, 8000, 5000, 12_000, 1600, 9000, 0]
    device_effects = {"gain": 0.5, "clipping": 0.5, "band_limit": 0.5, "codec": 0.5}
    config = environment.config.model_copy(
        update={"effects": environment.config.effects.model_copy(update=device_effects), "noise_in_room": True}
    )
    env = Environment(config, environment.noise, environment.rooms)
    clean = torch.zeros(len(counts), max(counts), device="meta")
    for seed in range(4):
        scenes = _scenes(env, counts, seed)
        responses = {id: response for scene in scenes for id, response in env.responses(scene).items()}
        assert set(responses) == {r for scene in scenes for r in (scene.room, scene.noise_room) if r}
        heard = env.render(clean, torch.tensor(counts), torch.zeros_like(clean), scenes, responses)
        assert heard.device.type == "meta" and heard.shape == clean.shape


def test_recordings_of_another_split_are_never_heard(noises: list, talk: list, responses: list) -> None:
    def split_up(recordings: list[Recording]) -> list[Recording]:
        return [replace(r, split=("train", "valid", "test")[i % 3]) for i, r in enumerate(recordings)]

    noise, rooms, speech = split_up(noises), split_up(responses), split_up(talk)
    config = EnvironmentConfig(noise_kinds={"recorded": 1, "babble": 1}, simulated_share=0.5, simulated_rooms=2)
    heard: dict[str, set[str]] = {}
    for split in ("train", "valid", "test"):
        environment = Environment.build(config, noise, rooms, speech, split=split)
        scenes = [environment.draw(str(i), 0.2, 0) for i in range(150)]
        sources = {d.source for s in scenes for d in s.noises if d.source}
        voices = {source for s in scenes for d in s.noises for v in d.voices for source in v.sources}
        heard[split] = sources | voices | {s.room for s in scenes if s.room}
        named = {r.id: r.split for r in [*noise, *rooms, *speech]}
        assert {named.get(id, split) for id in heard[split]} == {split}
    assert not heard["train"] & heard["valid"] and not heard["train"] & heard["test"]


def test_what_is_missing_is_said_before_any_work(noises: list, responses: list) -> None:
    with pytest.raises(UserError, match="--noise"):
        Environment.build(EnvironmentConfig(noise_kinds={"recorded": 1, "white": 0}))
    with pytest.raises(UserError, match="--rooms"):
        Environment.build(EnvironmentConfig(simulated_rooms=0))
    assert len(Environment.build(EnvironmentConfig()).rooms) == 128  # 64 simulated rooms, two places each
    assert len(Environment.build(EnvironmentConfig(), rooms=responses).rooms) == len(responses)
    bare = Environment(EnvironmentConfig(both=0, reverb=0))
    with pytest.raises(UserError, match="--noise"):
        [bare.draw(str(i), 1.0, 0) for i in range(20)]
    clean_only = Environment.build(EnvironmentConfig(noise=0, reverb=0, both=0))
    assert {clean_only.draw(str(i), 1.0, 0).kind for i in range(5)} == {"clean"}


def test_conditions_can_be_fixed(plain: Environment) -> None:
    scenes = [fixed_scene(plain, "u", 2.0, 7, snr, "weather", "den") for snr in (-5, 0, 60)]
    assert [scene.snr_db for scene in scenes] == [-5, 0, 60]
    assert len({replace(scene, snr_db=0.0) for scene in scenes}) == 1  # all else stays the same
    assert scenes[0].kind == "both" and scenes[0].room.startswith("den-") and scenes[0].t60 is not None
    assert scenes[0].noises[0].source in ("rain", "drip")
    rooms = {fixed_scene(plain, f"u{i}", 1.0, room="hall").room for i in range(30)}
    assert rooms == {"hall-0", "hall-1", "hall-2"}
    assert fixed_scene(plain, "u", 1.0).kind == "clean"
    assert fixed_scene(plain, "u", 1.0, snr_db=3, noise=["white", "hum"]).noises[1].source == "hum"
    with pytest.raises(UserError, match="both or neither"):
        fixed_scene(plain, "u", 1.0, snr_db=3)
    with pytest.raises(UserError, match="no room"):
        fixed_scene(plain, "u", 1.0, room="attic")
    by_hand = Scene("u", kind="noise", snr_db=10.0, noises=(NoiseDraw("white", seed=3),))
    assert contaminate(speechlike(np.random.default_rng(0), 4000), plain, scene=by_hand)[0].shape == (4000,)


def test_bad_speech_is_refused_in_one_sentence(plain: Environment) -> None:
    for wave, word in ((np.zeros(0), "at least one"), (np.array([0.1, np.nan]), "not numbers")):
        with pytest.raises(AudioError, match=word):
            contaminate(wave, plain)
    with pytest.raises(AudioError, match="an hour"):
        contaminate(np.broadcast_to(np.float32(0.1), (3600 * RATE + 1,)), plain)


def test_a_response_longer_than_the_speech_is_fine(plain: Environment) -> None:
    clean = speechlike(np.random.default_rng(0), 900)
    heard, _ = contaminate(clean, plain, scene=Scene("u", kind="reverb", room="hall-1"))
    wet, _ = _reference(plain, Scene("u", room="hall-1"), clean)
    np.testing.assert_allclose(heard, wet, atol=1e-5)


def test_a_deleted_noise_file_is_named(noises: list, tmp_path: Path) -> None:
    bank = NoiseBank([Recording("lost", str(tmp_path / "lost.wav"), 2.0)])
    with pytest.raises(AudioError, match=r"lost\.wav"):
        bank.fetch([NoiseDraw("recorded", "lost")], 100)
    with pytest.raises(UserError, match="--noise"):
        bank.fetch([NoiseDraw("recorded", "stranger")], 100)
    with pytest.raises(UserError, match="--rooms"):
        RoomBank().load("stranger")
