"""The gate's law: nothing that a verb writes ever replaces what is not its own."""

import os
import stat

import pytest

from robustdistiller.errors import UserError
from robustdistiller.files import replacing, replacing_folder, write_json, write_text
from robustdistiller.outputs import MARK, claim_file, claim_folder, claim_workplace, is_json_with

OURS = is_json_with("made")


def claim(kind, path, inputs=(), overwrite=False):
    """The three gates with one face, for a verb that writes a.json."""
    if kind == "file":
        claim_file(path / "a.json", "try", OURS, inputs, overwrite)
    elif kind == "folder":
        claim_folder(path, "try", ["a.json"], "a.json", inputs, overwrite)
    else:
        claim_workplace(path, "try", ["a.json"], (), inputs)


@pytest.mark.parametrize("kind", ["file", "folder", "workplace"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_another_wrote_is_never_replaced(tmp_path, kind, overwrite):
    (tmp_path / ("notes.txt" if kind == "folder" else "a.json")).write_text("mine")
    with pytest.raises(UserError, match=r"did not write it|not ours"):
        claim(kind, tmp_path, overwrite=overwrite)


@pytest.mark.parametrize("kind", ["file", "folder", "workplace"])
def test_an_input_or_a_folder_around_one_is_never_replaced(tmp_path, kind):
    out = tmp_path / "out"
    claim(kind, out)
    write_json(out / "a.json", {"made": 1})
    for text in (out / "a.json", f"name={out / 'a.json'}", f"corpus:{out / 'a.json'}", f"{out / 'a.json'}::root"):
        with pytest.raises(UserError, match="would replace the input"):
            claim(kind, out, [text], overwrite=True)
    link = tmp_path / "link"
    link.symlink_to(out)
    with pytest.raises(UserError, match="would replace the input"):
        claim(kind, link, [out / "a.json"], overwrite=True)


def test_earlier_outputs_are_replaced_when_told_to(tmp_path):
    write_json(tmp_path / "a.json", {"made": 1})
    for kind in ("file", "folder"):
        with pytest.raises(UserError, match="--overwrite"):
            claim(kind, tmp_path)
        claim(kind, tmp_path, overwrite=True)


def test_a_workplace_is_known_again_by_its_verb_alone(tmp_path):
    claim_workplace(tmp_path, "try", ["a.json"])
    write_json(tmp_path / "a.json", 1)
    claim_workplace(tmp_path, "try", ["a.json"])
    assert (tmp_path / MARK).read_text() == "try\n"
    with pytest.raises(UserError, match="`other` did not write it"):
        claim_workplace(tmp_path, "other", ["a.json"])


@pytest.mark.parametrize("manager", [replacing, replacing_folder])
def test_devices_and_pipes_are_never_replaced(tmp_path, manager):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(UserError, match="neither a file nor a folder"), manager(path):
            raise AssertionError
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode) and stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_links_are_followed_not_replaced(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "new"
    (tmp_path / "place").mkdir()
    (tmp_path / "to").symlink_to("place")
    with replacing_folder(tmp_path / "to") as folder:
        (folder / "x").write_text("x")
    assert (tmp_path / "to").is_symlink() and (tmp_path / "place" / "x").is_file()
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(UserError, match="Cannot write"):
        write_text(tmp_path / "round", "x")


def test_a_student_is_not_saved_over_a_folder_with_other_things(tmp_path, checkpoint):
    from robustdistiller.config import EnhancementConfig, StudentConfig
    from robustdistiller.models.building import build_student
    from robustdistiller.models.teacher import load_teacher

    teacher = load_teacher(str(checkpoint("hubert")), precision="fp32")
    student, _ = build_student(teacher, StudentConfig(), EnhancementConfig(enabled=False))
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes.txt, which is not ours"):
        student.save(tmp_path / "keep")
    assert (tmp_path / "keep" / "notes.txt").read_text() == "mine"
