"""Laws of the hub: what its repositories really hold is loaded by the real client, and every refusal is one sentence.

The hub is `loopback_hub`, a server on this machine; nothing of `huggingface_hub` or of our code is replaced.
"""

import json
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_weights import old_names, same, write_shards

from loopback_hub import TOKEN, LoopbackHub
from robustdistiller.errors import UserError
from robustdistiller.models.hub import load_encoder
from robustdistiller.models.repository import locate

# The files of the paper's three teachers on the hub, `main`: pickled tensors, no safetensors.
COMMON = (".gitattributes", "README.md", "config.json", "preprocessor_config.json", "pytorch_model.bin")
PAPER = {
    "facebook/hubert-base-ls960": ("hubert", True, (*COMMON, "tf_model.h5")),
    "microsoft/wavlm-base-plus": ("wavlm", False, COMMON),
    "facebook/wav2vec2-base": (
        "wav2vec2",
        True,
        (*COMMON, "tokenizer_config.json", "vocab.json", "special_tokens_map.json"),
    ),
}


@pytest.fixture()
def hub(tmp_path, monkeypatch):
    """A hub that the client of this process talks to, with a cache of its own and nobody logged in."""
    with LoopbackHub() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        offline(monkeypatch, False)
        yield server


def offline(monkeypatch, value):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", value)
    huggingface_hub.close_session()


def hub_layout(folder, base, files):
    """A repository with exactly these files: the weights pickled in the dialect of before parametrizations."""
    folder.mkdir(parents=True)
    for name in files:
        if (base / name).is_file():
            shutil.copy(base / name, folder)
        elif name == "pytorch_model.bin":
            torch.save(old_names(load_file(base / "model.safetensors")), folder / name)
        else:
            (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_teachers_load_from_the_files_that_the_hub_has(hub, checkpoint, tmp_path, monkeypatch, name):
    kind, normalize, files = PAPER[name]
    base = checkpoint(kind, normalize=normalize)
    repository = hub.add(name, hub_layout(tmp_path / name, base, files))
    loaded = load_encoder(name)
    same(loaded, load_encoder(base))
    assert loaded.normalize == normalize
    assert loaded.source == f"pytorch_model.bin, revision {repository.sha[:12]}"
    asked = {path.rsplit("/", 1)[-1] for _, path in hub.requests if "/resolve/" in path}
    assert asked == {"config.json", "preprocessor_config.json", "pytorch_model.bin"}
    assert not any("discussions" in path or "refs/pr" in path or "safetensors" in path for _, path in hub.requests)

    count = len(hub.requests)
    offline(monkeypatch, True)
    same(load_encoder(name), loaded)
    assert load_encoder(f"{name}@main").source == loaded.source
    snapshot = tmp_path / "cache" / f"models--{name.replace('/', '--')}" / "snapshots" / repository.sha
    assert load_encoder(snapshot).source == loaded.source
    assert len(hub.requests) == count


def test_safetensors_and_shards_are_fetched_and_nothing_beside_them(hub, checkpoint, tmp_path):
    base = checkpoint("hubert")
    tensors = load_file(base / "model.safetensors")
    shards = shutil.copytree(base, tmp_path / "shards")
    (shards / "model.safetensors").unlink()
    write_shards(shards, tensors, "pytorch_model.bin", torch.save)
    hub.add("me/pickled-shards", shards)
    write_shards(shards, tensors, "model.safetensors", save_file)
    hub.add("me/shards", shards)
    hub.add("me/whole", hub_layout(tmp_path / "whole", base, ("config.json", "model.safetensors", "pytorch_model.bin")))
    for name, source in (
        ("me/whole", "model.safetensors"), ("me/shards", "2 shards of model.safetensors"),
        ("me/pickled-shards", "2 shards of pytorch_model.bin"),
    ):  # fmt: skip
        hub.requests.clear()
        loaded = load_encoder(name)
        same(loaded, load_encoder(base))
        assert loaded.source.startswith(f"{source}, revision ")
        if name != "me/pickled-shards":
            assert not any(path.endswith(".bin") for _, path in hub.requests)


def test_revisions_are_told_apart(hub, checkpoint, tmp_path):
    repository = hub.add("me/model", checkpoint("hubert"), revisions=("main", "v1"))
    assert locate("me/model@v1").folder.name == repository.sha
    assert locate(f"me/model@{repository.sha}").folder.name == repository.sha
    with pytest.raises(UserError, match="me/model has no revision 'v2'"):
        locate("me/model@v2")


def test_who_may_not_read_a_model_learns_how(hub, checkpoint, monkeypatch):
    folder = checkpoint("hubert")
    hub.add("me/gated", folder, access="gated")
    hub.add("me/refused", folder, access="refused")
    hub.add("me/private", folder, access="private")
    for name, sentence in (
        ("me/gated", "accept them on its page.*hf auth login"), ("me/refused", "accept them on its page.*hf auth login"),
        ("me/private", "hub has no model me/private, or does not show it to you.*hf auth login"),
        ("me/missing", "hub has no model me/missing"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=sentence) as caught:
            locate(name)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("me/gated", "me/private"):
        assert load_encoder(name).num_layers == 3


def test_what_no_repository_is_costs_no_request(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    for name, sentence in (
        ("mini-hubrt", "Did you mean 'mini-hubert'"),
        ("./runs/frst", "Did you mean 'first'"),
        ("a/b/c", "folder"),
    ):
        with pytest.raises(UserError, match=sentence):
            locate(name)
    assert not hub.requests
    with pytest.raises(UserError, match="Did you mean 'first'"):
        locate("runs/frst")
    with pytest.raises(UserError, match="write it as owner/name"):
        locate("me/what is this?")


def test_a_repository_without_a_model_is_told_by_its_files(hub, tmp_path, checkpoint):
    hub.add("me/flax", checkpoint("hubert"), only=("config.json",)).files["flax_model.msgpack"] = b"x"
    hub.add("me/data").files["README.md"] = b"# Data"
    with pytest.raises(UserError, match=r"me/flax on the hub holds no weights .*flax_model\.msgpack"):
        locate("me/flax")
    with pytest.raises(UserError, match=r"me/data on the hub holds no config\.json \(it holds README\.md\)"):
        locate("me/data")
    assert not any("/resolve/" in path and path.endswith("msgpack") for _, path in hub.requests)


def test_a_broken_download_goes_on_with_the_same_command(hub, checkpoint, tmp_path, monkeypatch):
    base = checkpoint("hubert")
    repository = hub.add("me/model", base)
    repository.cuts = 1  # the client takes it up by itself
    same(load_encoder("me/model"), load_encoder(base))

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "another cache"))
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    repository.cuts = 100
    with pytest.raises(UserError, match="the same command goes on"):
        load_encoder("me/model")
    repository.cuts = 0
    same(load_encoder("me/model"), load_encoder(base))


def test_too_many_requests_and_a_hub_that_is_away_are_sentences_and_the_cache_still_serves(
    hub, checkpoint, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    repository = hub.add("me/model", checkpoint("hubert"))
    hub.add("me/other", checkpoint("hubert"), status=429)
    with pytest.raises(UserError, match=r"fewer requests \(429\).*the same command goes on"):
        locate("me/other")
    loaded = load_encoder("me/model")
    repository.status = 503
    same(load_encoder("me/model"), loaded)
    hub.__exit__()
    huggingface_hub.close_session()  # or its open connections would still be answered
    same(load_encoder("me/model"), loaded)
    with pytest.raises(UserError, match="check the connection"):
        locate("me/another")
    offline(monkeypatch, True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids"):
        locate("me/another")


def test_a_cache_that_holds_a_part_is_no_model_offline(hub, checkpoint, monkeypatch, tmp_path):
    hub.add("me/model", checkpoint("hubert"))
    huggingface_hub.hf_hub_download("me/model", "config.json")
    offline(monkeypatch, True)
    with pytest.raises(UserError, match=r"me/model.*cache.*holds no weights"):
        locate("me/model")


def test_a_student_goes_to_the_hub_and_comes_back_by_its_name(hub, checkpoint, tmp_path, monkeypatch):
    from robustdistiller.config import EnhancementConfig, StudentConfig
    from robustdistiller.deployment.publish import push_to_hub
    from robustdistiller.models.building import build_student
    from robustdistiller.models.student import load_student
    from robustdistiller.models.teacher import load_teacher

    teacher = load_teacher(str(checkpoint("hubert")), precision="fp32")
    student, _ = build_student(teacher, StudentConfig(layers=1), EnhancementConfig(hidden=8, layers=1))
    student.save(
        tmp_path / "student", {"README.md": "---\ntags: [speech]\n---\n# A student\n", "recipe.yaml": "name: a\n"}
    )
    (tmp_path / "student" / "private notes.txt").write_text("not for others")
    with pytest.raises(UserError, match=r"did not take me/student \(.*401.*hf auth login"):
        push_to_hub(tmp_path / "student", "me/student")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    address = push_to_hub(tmp_path / "student", "me/student", licence="mit")
    repository = hub.repositories["me/student"]
    assert address == f"{hub.address}/me/student/commit/{repository.sha}"
    assert set(repository.files) == {p.name for p in (tmp_path / "student").iterdir()} - {"private notes.txt"}
    assert b"license: mit" in repository.files["README.md"]
    same(load_encoder("me/student"), student.encoder)
    back = load_student("me/student")
    wave = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0)) * 0.1
    torch.testing.assert_close(back.enhance(wave), student.eval().enhance(wave))
    push_to_hub(tmp_path / "student", "me/student", private=True)  # nothing new is no fault
    push_to_hub(tmp_path / "student", "me/secret", private=True)
    assert hub.repositories["me/secret"].access == "private"
    assert json.loads(repository.files["heads.json"])["layers"] == list(student.layers)
