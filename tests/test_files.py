"""Laws of files: whole or absent, whatever happens while they are written."""

import errno
import json
import os

import numpy as np
import pytest

from robustdistiller.errors import UserError
from robustdistiller.files import read_json, read_jsonl, replacing, replacing_folder, write_json, write_jsonl


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert json.loads(path.read_text()) == 1
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_folder_leaves_the_old_folder_and_nothing_else(tmp_path):
    path = tmp_path / "student"
    for content in ("one", "two"):
        with replacing_folder(path) as temporary:
            (temporary / "file").write_text(content)
    with pytest.raises(ZeroDivisionError), replacing_folder(path) as temporary:
        (temporary / "file").write_text("three")
        raise ZeroDivisionError
    assert (path / "file").read_text() == "two"
    assert os.listdir(tmp_path) == ["student"]


@pytest.mark.parametrize("manager", [replacing, replacing_folder])
def test_a_full_disk_is_one_sentence_and_keeps_the_old(tmp_path, manager):
    path = tmp_path / "thing"
    with pytest.raises(UserError, match="disk is full"), manager(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_real_full_disk_is_one_sentence():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(UserError, match="disk is full"), replacing("robust-distiller-full.txt") as temporary:
        temporary.unlink()
        with open("/dev/full", "w") as stream:
            stream.write("x")


def test_broken_json_is_one_sentence_with_its_place(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}, {"a": 2}])
    assert [row["a"] for _, row in read_jsonl(path)] == [1, 2]
    path.write_text('{"a": 1}\n\n[2]\n')
    with pytest.raises(UserError, match=r"Line 3 .* not a JSON object"):
        list(read_jsonl(path, "manifest"))
    path.write_text("{nope}\n")
    with pytest.raises(UserError, match="Line 1 of the manifest"):
        list(read_jsonl(path, "manifest"))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        list(read_jsonl(path, "manifest"))
    with pytest.raises(UserError, match="check the path"):
        read_json(tmp_path / "absent.json")


def test_a_replaced_folder_can_be_read_by_whom_the_umask_lets(tmp_path):
    from safetensors.numpy import save_file

    before = os.umask(0o027)
    try:
        with replacing_folder(tmp_path / "student") as folder:
            save_file({"w": np.zeros(3, np.float32)}, folder / "model.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "student" / "model.safetensors").stat().st_mode & 0o777 == 0o640
