"""What is held out for validation where a corpus says little: one recording, nobody's name."""

from robustdistiller import distill, load_recipe, read_audio
from robustdistiller.audio.io import write_audio
from robustdistiller.audio.manifest import read_manifest

FIELDS = [
    "data.crop_seconds=1.0", "data.batch_seconds=2.0", "data.workers=0", "data.valid_fraction=0.25", "data.valid_seconds=2",
    "environment.simulated_rooms=2", "objectives.enhancement.hidden=8", "objectives.enhancement.layers=1",
    "training.precision=fp32", "training.steps=1", "training.valid_every=1",
]  # fmt: skip


def test_one_recording_is_enough_its_end_is_held_out(checkpoint, voice, tmp_path):
    write_audio(tmp_path / "one.wav", voice(8.0, 0))
    recipe = load_recipe(
        None, FIELDS, teacher__model=str(checkpoint("hubert")), data__speech=[str(tmp_path / "one.wav")]
    )
    distill(recipe, tmp_path / "run")
    (train,), (valid,) = (
        read_manifest(tmp_path / "run" / "manifests" / f"speech-{s}.jsonl") for s in ("train", "valid")
    )
    assert (train.start, train.seconds, valid.start, valid.seconds) == (0.0, 6.0, 6.0, 2.0)
    assert len(read_audio(valid.path, valid.start, valid.seconds)) == 32_000


def test_it_is_said_when_no_speaker_is_known(checkpoint, voice, tmp_path, caplog):
    for number in range(4):
        write_audio(tmp_path / "speech" / f"{number}.wav", voice(2.0, number))
    recipe = load_recipe(
        None, FIELDS, teacher__model=str(checkpoint("hubert")), data__speech=[str(tmp_path / "speech")]
    )
    distill(recipe, tmp_path / "run")
    assert "no speaker of the speech is known" in caplog.text
