"""Every shipped recipe builds a student of every kind of teacher, whatever sizes the two have."""

import pytest
import torch

from robustdistiller.config import EnhancementConfig, load_recipe
from robustdistiller.errors import UserError
from robustdistiller.models.building import build_student
from robustdistiller.models.student import load_student
from robustdistiller.models.teacher import load_teacher
from robustdistiller.presets import shipped_names

# The first two are shipped; the others are random and in turn as wide as `smoke`, wider, narrower, and of other families.
TEACHERS = {
    "mini-hubert": None,
    "mini-edge": None,
    "hubert": dict(kind="hubert"),
    "hubert wide": dict(kind="hubert", hidden_size=128, conv_dim=(128, 96, 80, 80, 96, 96, 96)),
    "hubert narrow": dict(kind="hubert", hidden_size=32, intermediate_size=48, conv_dim=(16,) * 7),
    "wav2vec2 large build": dict(kind="wav2vec2", stable=True, normalize=True),
    "wavlm": dict(kind="wavlm", hidden_size=96),
    "data2vec": dict(kind="data2vec-audio"),
    "unispeech-sat": dict(kind="unispeech-sat"),
    "whisper": dict(kind="whisper"),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_every_recipe_builds_a_student_of_every_teacher(checkpoint, voice, tmp_path, name):
    fields = TEACHERS[name]
    teacher = load_teacher(name if fields is None else str(checkpoint(**fields)), layers=(1,), precision="fp32")
    clips = [torch.tensor(voice(0.5, seed)) for seed in range(2)]
    wave, lengths = (
        torch.nn.utils.rnn.pad_sequence([clips[0], clips[1][:5000]], batch_first=True),
        torch.tensor([8000, 5000]),
    )
    distinct = {}
    for recipe in shipped_names("recipes"):
        loaded = load_recipe(recipe, teacher__model=name)
        distinct[str((loaded.student, loaded.objectives.enhancement))] = recipe, loaded
    for recipe, loaded in distinct.values():
        from_teacher = loaded.student.init == "teacher"
        if loaded.student.streaming is not None and from_teacher and fields and fields.get("stable"):
            with pytest.raises(UserError, match="pre-norm layers and cannot stream"):
                build_student(teacher, loaded.student, loaded.objectives.enhancement, 0, clips)
            continue
        student, report = build_student(teacher, loaded.student, loaded.objectives.enhancement, 0, clips)
        output = student(wave, lengths)
        assert torch.isfinite(output.predictions).all(), recipe
        assert output.predictions.shape[-1] == teacher.hidden_size, recipe
        if student.enhancer is not None:
            assert torch.isfinite(output.enhancement.magnitude).all(), recipe
        told = [*report.copied, *report.pruned, *report.fitted, *report.random]
        assert sorted(told) == sorted(student.encoder.model.state_dict())
        if student.num_parameters < 5e6:
            student.eval().save(tmp_path / recipe)
            torch.testing.assert_close(load_student(tmp_path / recipe).states(wave)[0], student.states(wave)[0])


def test_a_student_that_cannot_start_from_its_teacher_says_why(checkpoint, caplog):
    teacher = load_teacher("mini-hubert", precision="fp32")
    edge, smoke = (load_recipe(name).student for name in ("edge", "smoke"))
    build_student(teacher, edge, EnhancementConfig(enabled=False))
    assert "18 of" in caplog.text and "set student.conv_channels to at most the source's, [" in caplog.text
    caplog.clear()
    build_student(teacher, smoke, EnhancementConfig(enabled=False))
    assert "student.hidden_size is 64, and the source's 256" in caplog.text
    caplog.clear()
    build_student(teacher, load_recipe("mini-edge").student, EnhancementConfig(enabled=False))
    assert not caplog.records
