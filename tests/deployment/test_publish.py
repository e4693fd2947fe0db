"""Publishing sends a student that opens, its card with a licence, and nothing else that lies beside it."""

import shutil
from fnmatch import fnmatch

import pytest
import yaml

from robustdistiller.deployment.publish import push_to_hub, with_licence
from robustdistiller.errors import UserError


class Hub:
    """Stands in for `huggingface_hub.HfApi`."""

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def create_repo(self, **options):
        if self.error:
            raise self.error
        self.calls.append(("create", options))

    def upload_folder(self, **options):
        self.calls.append(("upload", options))
        return type("Commit", (), {"commit_url": "https://hub/me/model/commit/1"})()


@pytest.fixture
def folder(student_folder, tmp_path):
    return shutil.copytree(student_folder, tmp_path / "student")


def test_the_student_and_its_card_are_uploaded(folder):
    hub = Hub()
    (folder / "notes-to-myself.txt").write_text("secret")
    assert push_to_hub(folder, "me/model", private=True, licence="apache-2.0", api=hub).startswith(
        "https://hub/me/model"
    )
    (create, created), (upload, uploaded) = hub.calls
    assert (create, upload) == ("create", "upload") and created["private"] and created["exist_ok"]
    assert created["repo_id"] == uploaded["repo_id"] == "me/model" and uploaded["folder_path"] == str(folder)
    sent = {f.name for f in folder.iterdir() if any(fnmatch(f.name, pattern) for pattern in uploaded["allow_patterns"])}
    assert {
        "model.safetensors",
        "config.json",
        "heads.safetensors",
        "README.md",
    } <= sent and "notes-to-myself.txt" not in sent
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert front["license"] == "apache-2.0"


def test_what_is_no_student_is_not_published(folder, tmp_path):
    hub = Hub()
    for place, repository, sentence in (
        (folder, "no-owner", "write it as name/model"),
        (folder, "a/b/c", "write it as name/model"),
        (tmp_path / "none", "me/model", "There is no folder"),
        (tmp_path, "me/model", "no student"),
    ):
        with pytest.raises(UserError, match=sentence):
            push_to_hub(place, repository, api=hub)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cut or damaged"):
        push_to_hub(folder, "me/model", api=hub)
    assert not hub.calls


def test_a_refusal_of_the_hub_is_one_sentence(folder):
    with pytest.raises(UserError, match=r"did not take me/model \(401 Unauthorized\)"):
        push_to_hub(folder, "me/model", api=Hub(OSError("401 Unauthorized\nlong trace")))


def test_a_card_keeps_its_text_and_its_other_fields():
    card = "---\ntags: [speech, robust]\nlicense: mit\n---\n# Title\n\nText --- with dashes\n"
    assert with_licence(card, None) == card
    changed = with_licence(card, "apache-2.0")
    assert changed.endswith("# Title\n\nText --- with dashes\n")
    assert yaml.safe_load(changed.split("---")[1]) == {"tags": ["speech", "robust"], "license": "apache-2.0"}
    assert with_licence("# Bare\n", "mit").startswith("---\nlicense: mit\n---\n# Bare")
