"""Laws of the conditions: what is asked is what is heard, by every model alike, and only that differs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robustdistiller.acoustics.rooms import RoomBank
from robustdistiller.audio.io import write_audio
from robustdistiller.audio.manifest import Recording, write_manifest
from robustdistiller.errors import UserError
from robustdistiller.evaluation.conditions import CLEAN, ConditionsConfig, load_conditions
from robustdistiller.evaluation.rendering import TRAINING, ConditionRenderer, load_wave
from robustdistiller.presets import shipped_folder

GRID = {
    "noise": {
        "sources": [
            {"name": "white", "kind": "white", "seen": True},
            {"name": "babble", "kind": "babble"},
            {"name": "recorded", "kind": "recorded"},
        ],
        "snr_db": [0, 12],
    },
    "rooms": {"sources": [{"name": "simulated", "simulated": 3}], "t60": [[0.2, 0.4], [0.4, 0.8]]},
    "both": {"noise": ["white"], "snr_db": [6], "t60": [[0.2, 0.4]]},
}


@pytest.fixture(scope="module")
def stage(noises):
    return ConditionRenderer(ConditionsConfig.model_validate(GRID), noise=[str(noises)])


def hear(stage, task, name):
    condition = next(c for c in stage.conditions if c.name == name)
    wave, lengths = stage.render(condition, task, "test", task.test)(range(6))
    clean, _ = stage.load(task.test[:6], task)
    return clean, wave, lengths


def test_the_grid_is_the_product_that_the_file_describes(stage):
    names = [c.name for c in stage.conditions]
    assert names == [
        "clean", "white_0dB", "white_12dB", "babble_0dB", "babble_12dB", "recorded_0dB", "recorded_12dB",
        "simulated_0.2-0.4s", "simulated_0.4-0.8s", "white_6dB_simulated_0.2-0.4s",
    ]  # fmt: skip
    assert [c.seen for c in stage.conditions[:4]] == [None, "seen", "seen", "unseen"]
    assert stage.conditions[-1].seen == "partly seen"


@pytest.mark.parametrize("name", ["white_0dB", "babble_12dB", "recorded_12dB"])
def test_realised_snr_is_the_snr_asked(stage, keywords, name):
    clean, wave, lengths = hear(stage, keywords, name)
    for x, y, length in zip(clean, wave, lengths, strict=True):
        noise = (y - x)[:length]
        snr = 10 * torch.log10(x[:length].square().mean() / noise.square().mean())
        assert abs(float(snr) - float(name.split("_")[1].removesuffix("dB"))) < 0.05
        assert not y[length:].any()


def test_the_noise_is_the_same_stretch_at_every_snr(stage, keywords):
    for kind in ("white", "babble", "recorded"):
        clean, loud, _ = hear(stage, keywords, f"{kind}_0dB")
        _, soft, _ = hear(stage, keywords, f"{kind}_12dB")
        torch.testing.assert_close((loud - clean) * 10 ** (-12 / 20), soft - clean, atol=1e-5, rtol=0)


def test_rooms_have_the_reverberation_time_of_their_bin(stage, keywords):
    for low, high in ((0.2, 0.4), (0.4, 0.8)):
        condition = next(c for c in stage.conditions if c.t60 == (low, high))
        for example in keywords.test:
            assert low <= stage.scene(condition, keywords, "test", example).t60 < high


def test_every_response_is_read_once_however_many_bins_there_are(tmp_path, monkeypatch):
    rooms = RoomBank().add_simulated(3)
    files = [Recording(name, str(tmp_path / f"{name}.wav"), 1.0, split="test") for name in rooms.ids]
    for recording in files:
        write_audio(Path(recording.path), rooms.load(recording.id).samples)
    write_manifest(tmp_path / "rooms.jsonl", files)
    read = []
    load = RoomBank.load
    monkeypatch.setattr(RoomBank, "load", lambda self, name: read.append(name) or load(self, name))
    grid = {"sources": [{"name": "measured", "source": str(tmp_path / "rooms.jsonl")}], "t60": [[0.1, 0.4], [0.4, 9]]}
    bins = ConditionRenderer(ConditionsConfig.model_validate({"rooms": grid}))._rooms["measured"].bins
    assert sorted(read) == sorted(rooms.ids) == sorted(name for names in bins.values() for name in names)


def test_a_room_is_the_same_with_and_without_noise(stage, keywords):
    wet, both = (
        next(c for c in stage.conditions if c.name == n) for n in ("simulated_0.2-0.4s", "white_6dB_simulated_0.2-0.4s")
    )
    for example in keywords.test:
        assert stage.scene(wet, keywords, "test", example).room == stage.scene(both, keywords, "test", example).room


def test_every_stage_of_the_same_seed_sounds_the_same(stage, keywords, noises):
    again = ConditionRenderer(ConditionsConfig.model_validate(GRID), noise=[str(noises)])
    other = ConditionRenderer(ConditionsConfig.model_validate({**GRID, "seed": 1}), noise=[str(noises)])
    for name in ("babble_0dB", "recorded_0dB", "simulated_0.4-0.8s", "white_6dB_simulated_0.2-0.4s"):
        first = hear(stage, keywords, name)[1]
        assert torch.equal(first, hear(again, keywords, name)[1])
        assert not torch.equal(first, hear(other, keywords, name)[1])


def test_a_batch_does_not_decide_how_an_utterance_sounds(stage, keywords):
    condition = stage.conditions[-1]
    render = stage.render(condition, keywords, "test", keywords.test)
    together, lengths = render(range(6))
    for k in range(6):
        alone, _ = render([k])
        assert torch.equal(alone[0], together[k, : lengths[k]])


def test_recorded_noise_comes_from_the_test_part_and_babble_from_others(stage, keywords):
    recorded, babble = (next(c for c in stage.conditions if c.name == n) for n in ("recorded_0dB", "babble_0dB"))
    people = {e.id: e.recording.speaker for e in keywords.test}
    for example in keywords.test:
        assert stage.scene(recorded, keywords, "test", example).noises[0].source in ("n4", "n5")
        for voice in stage.scene(babble, keywords, "test", example).noises[0].voices:
            assert all(people[source] != example.recording.speaker for source in voice.sources)


def test_noise_may_be_split_into_types_by_a_field(noises):
    sources = [{"name": "all", "kind": "recorded", "source": str(noises), "by": "label"}]
    stage = ConditionRenderer(ConditionsConfig.model_validate({"noise": {"sources": sources, "snr_db": [5]}}))
    assert [c.noise for c in stage.conditions] == [None, "hiss", "rumble"]


def test_what_was_not_named_is_left_out_with_a_note():
    stage = ConditionRenderer(ConditionsConfig.model_validate(GRID))
    assert not any(c.noise == "recorded" for c in stage.conditions)
    assert any("'recorded' is left out" in note for note in stage.notes)


def test_sources_that_no_condition_asks_for_are_looked_at_all_the_same(noises):
    with pytest.raises(UserError, match="There is no rooms at /nowhere"):
        ConditionRenderer(ConditionsConfig.model_validate(GRID), rooms=["/nowhere"])
    renderer = ConditionRenderer(ConditionsConfig(), noise=[str(noises)])
    assert any("--noise is not used" in note for note in renderer.notes)


def test_two_conditions_never_share_a_name():
    sources = [{"name": "hum_1dB", "kind": "hum"}, {"name": "hum", "kind": "hum"}]
    same = {"noise": {"sources": sources, "snr_db": [1.0000001, 1]}}
    with pytest.raises(UserError, match="Two conditions of conditions are called hum_1dB"):
        ConditionRenderer(ConditionsConfig.model_validate(same))


def test_contaminated_training_uses_the_training_part(noises, keywords):
    stage = ConditionRenderer(ConditionsConfig.model_validate(GRID), noise=[str(noises)])
    scenes = [stage.scene(TRAINING, keywords, "train", e) for e in keywords.train]
    sources = {n.source for s in scenes for n in s.noises if n.source}
    assert sources and sources <= {"n0", "n1"}
    assert {s.kind for s in scenes} == {"clean", "noise", "reverb", "both"}
    tested = {stage.scene(c, keywords, "test", e).room for c in stage.conditions if c.t60 for e in keywords.test}
    assert not tested & {s.room for s in scenes if s.room}


def test_the_digest_of_a_condition_follows_what_is_heard(stage, keywords, noises):
    def digests(one):
        return {c.name: one.digest(c, keywords, "test") for c in one.conditions}

    same = digests(ConditionRenderer(ConditionsConfig.model_validate(GRID), noise=[str(noises)]))
    assert digests(stage) == same and len(set(same.values())) == len(same)
    other = digests(ConditionRenderer(ConditionsConfig.model_validate({**GRID, "seed": 1}), noise=[str(noises)]))
    assert not set(same.values()) & set(other.values())


def test_levels_are_normalised_before_anything_else(keywords):
    wave = load_wave(keywords.test[0].recording, -30.0)
    assert 10 * np.log10(np.mean(wave.astype(float) ** 2)) == pytest.approx(-30, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"noise": {"sources": [{"name": "x", "kind": "wight"}]}}, "Did you mean 'white'"),
        ({"noise": {"sauces": []}}, "Did you mean 'sources'"),
        ({"noise": {"sources": [{"name": "x", "kind": "white", "snr": 3}]}}, r"Unknown field 'noise.sources.0.snr'"),
        ({"rooms": {"t60": [[0.5, 0.2]]}}, "lowest, highest"),
        ({"both": {"noise": ["wind"]}}, "no source of noise"),
        ({"clean": False}, "no condition"),
        ({"noise": {"snr_db": [0, 10, 0.0]}}, r"'noise.snr_db'.*0.0 stands in it twice"),
        ({"rooms": {"t60": [[0.2, 0.5], [0.2, 0.5]]}}, "stands in it twice"),
        ({"both": {"snr_db": [5, 5]}}, r"'both.snr_db'.*twice"),
        ({"rooms": {"sources": [{"name": "x", "simulated": 10**8}]}}, "less than or equal to 10000"),
    ],
)
def test_mistakes_in_a_conditions_file_are_told_in_one_sentence(tmp_path, change, words):
    import yaml

    file = tmp_path / "conditions.yaml"
    file.write_text(yaml.safe_dump(change))
    with pytest.raises(UserError, match=words):
        load_conditions(file)


def test_a_missing_source_is_refused():
    sources = [{"name": "x", "kind": "recorded", "source": "nowhere"}]
    with pytest.raises(UserError, match="There is no noise at nowhere"):
        ConditionRenderer(ConditionsConfig.model_validate({"noise": {"sources": sources, "snr_db": [0]}}))


def test_shipped_grids_load_by_name_and_start_with_clean_speech():
    for name in ("paper", "quick"):
        config, folder = load_conditions(name)
        stage = ConditionRenderer(config, folder)
        assert stage.conditions[0] == CLEAN and folder == shipped_folder("conditions")
        assert {c.kind for c in stage.conditions} == {"clean", "noise", "reverb", "both"}
    with pytest.raises(UserError, match="Did you mean 'paper'"):
        load_conditions("papper")
