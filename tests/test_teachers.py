"""Laws of the verb `teachers`, and of looking a teacher up before anything else is done."""

import json
import shlex
from pathlib import Path

import pytest

from robustdistiller.cli import run
from robustdistiller.cli.teachers import KINDS
from robustdistiller.config import load_recipe
from robustdistiller.errors import UserError
from robustdistiller.models.hub import SUPPORTED

DOCS = (Path(__file__).parents[1] / "docs" / "teachers.md").read_text(encoding="utf-8")


def test_the_list_and_the_docs_have_every_supported_kind():
    assert set(KINDS) == set(SUPPORTED)
    for kind, names in KINDS.items():
        assert f"`{kind}`" in DOCS
        for name in names.split(", "):
            assert name.split(" ")[0] in DOCS


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2-bert", "sew"])
def test_a_check_ends_with_a_command_that_the_recipe_takes(checkpoint, capsys, kind):
    folder = str(checkpoint(kind))
    assert run(["teachers", folder]) == 0
    text = capsys.readouterr().out
    assert f"{kind}, " in text and "3 layers of 64" in text and "model.safetensors, in" in text
    program, verb, recipe, *options = shlex.split(text.strip().splitlines()[-1])
    assert (program, verb) == ("robustdistiller", "distill")
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert set(given) <= {"--teacher", "--speech", "--noise", "--rooms", "--out", "--set"}
    assert given["--teacher"] == folder
    chosen = load_recipe(recipe, [given["--set"]] if "--set" in given else [])
    assert chosen.teacher.layers in (None, (1, 2, 3))
    assert run(["teachers", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 49


def test_a_name_that_is_no_teacher_is_a_sentence(capsys, tmp_path):
    for name, sentence in (("mini-hubrt", "Did you mean 'mini-hubert'"), (str(tmp_path), "holds no config.json")):
        assert run(["teachers", name]) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())


def test_a_teacher_is_looked_up_before_a_corpus_is_scanned(tmp_path):
    from robustdistiller.training.distill import distill

    recipe = load_recipe("smoke", teacher__model="mini-hubrt", data__speech=[str(tmp_path / "no speech")])
    with pytest.raises(UserError, match="Did you mean 'mini-hubert'"):
        distill(recipe, tmp_path / "run")
