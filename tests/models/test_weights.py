"""Laws of reading weights: every layout of the hub gives the same encoder, and nothing in a file is run or believed."""

import collections
import json
import os
import pickle
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from robustdistiller.errors import UserError
from robustdistiller.models.hub import load_encoder
from robustdistiller.models.repository import locate


def old_names(tensors):
    """The state dict as `transformers` wrote it before PyTorch's parametrizations."""
    dialect = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    renamed = {}
    for name, value in tensors.items():
        for new, old in dialect.items():
            name = name.replace(new, old)
        renamed[name] = value
    return renamed


def write_shards(folder, tensors, single, save):
    names = list(tensors)
    index, half = {}, len(names) // 2
    stem, suffix = single.rsplit(".", 1)
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        save({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / f"{single}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def legacy(tensors, file):
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


LAYOUTS = {
    "safetensors": lambda folder, t: save_file(t, folder / "model.safetensors"),
    "sharded safetensors": lambda folder, t: write_shards(folder, t, "model.safetensors", save_file),
    "bin": lambda folder, t: torch.save(t, folder / "pytorch_model.bin"),
    "sharded bin": lambda folder, t: write_shards(folder, t, "pytorch_model.bin", torch.save),
    "bin of before PyTorch 1.6": lambda folder, t: legacy(t, folder / "pytorch_model.bin"),
    "ordered bin": lambda folder, t: torch.save(collections.OrderedDict(t), folder / "pytorch_model.bin"),
    "parameters": lambda folder, t: torch.save(
        {k: torch.nn.Parameter(v) for k, v in t.items()}, folder / "pytorch_model.bin"
    ),
}


@pytest.fixture()
def folder(checkpoint, tmp_path):
    """A HuBERT without its weights, and these."""
    made = shutil.copytree(checkpoint("hubert", normalize=True), tmp_path / "teacher")
    tensors = load_file(made / "model.safetensors")
    (made / "model.safetensors").unlink()
    return made, tensors


def same(one, other):
    left, right = one.model.state_dict(), other.model.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_both_dialects_give_the_same_encoder(checkpoint, folder, layout, old):
    place, tensors = folder
    LAYOUTS[layout](place, old_names(tensors) if old else tensors)
    same(load_encoder(place), load_encoder(checkpoint("hubert", normalize=True)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_half_precision_is_read_into_float32(folder, dtype, layout):
    place, tensors = folder
    LAYOUTS[layout](place, {name: value.to(dtype) for name, value in tensors.items()})
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))
    loaded = load_encoder(place).model.state_dict()
    for name, value in tensors.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], value.to(dtype).float())


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        ("Hubert", ("ForCTC", "ForSequenceClassification")), ("WavLM", ("ForCTC", "ForSequenceClassification", "ForXVector")),
        ("Wav2Vec2", ("ForCTC", "ForPreTraining", "ForSequenceClassification", "ForAudioFrameClassification")),
        ("UniSpeechSat", ("ForCTC", "ForPreTraining")), ("Data2VecAudio", ("ForCTC",)),
        ("Whisper", ("ForConditionalGeneration", "ForAudioClassification")),
    ],
)  # fmt: skip
def test_checkpoints_with_any_head_give_their_encoder(checkpoint, tmp_path, kind, heads):
    names = {"Hubert": "hubert", "WavLM": "wavlm", "Wav2Vec2": "wav2vec2", "UniSpeechSat": "unispeech-sat"}
    base = checkpoint(names.get(kind, "whisper" if kind == "Whisper" else "data2vec-audio"))
    plain = load_encoder(base)
    for head in heads:
        model = getattr(hf, f"{kind}{head}").from_pretrained(base)
        place = tmp_path / head
        model.save_pretrained(place)
        torch.save(old_names(model.state_dict()), place / "pytorch_model.bin")
        (place / "model.safetensors").unlink()
        shutil.copy(base / "preprocessor_config.json", place)
        same(load_encoder(place), plain)


def test_a_convolutional_adapter_is_left_off(checkpoint, tmp_path, voice):
    base = checkpoint("wav2vec2")
    model = hf.Wav2Vec2Model.from_pretrained(base, add_adapter=True, num_adapter_layers=1)
    model.save_pretrained(tmp_path)
    shutil.copy(base / "preprocessor_config.json", tmp_path)
    assert any(name.startswith("adapter.") for name in load_file(tmp_path / "model.safetensors"))
    same(load_encoder(tmp_path), load_encoder(base))


def test_safetensors_come_first_and_what_was_taken_is_told(folder, tmp_path):
    place, tensors = folder
    torch.save(tensors, place / "pytorch_model.bin")
    assert load_encoder(place).source == "pytorch_model.bin"
    save_file(tensors, place / "model.safetensors")
    assert load_encoder(place).source == "model.safetensors"
    snapshot = tmp_path / "models--me--it" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(place, snapshot)
    (tmp_path / "models--me--it" / "refs").mkdir()
    (tmp_path / "models--me--it" / "refs" / "main").write_text(snapshot.name)
    for name in (snapshot, tmp_path / "models--me--it"):
        assert load_encoder(name).source == "model.safetensors, revision 0123456789ab"


class Code:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def packed(tensors, file):
    torch.save(tensors, file)
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(f"{file}.new", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr("archive/data/bomb", bytes(1 << 28))
    os.replace(f"{file}.new", file)


def endless(tensors, file):
    torch.save({name: torch.zeros(1).expand(value.shape) for name, value in tensors.items()}, file)


def unfolding(tensors, file):
    """A pickle of a few bytes that builds ten times the same 100 MB from one string."""
    one = b"c_codecs\nencode\n(X" + (10**6).to_bytes(4, "little") + b"a" * 10**6 + b"X\x05\x00\x00\x00utf32tR"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02(" + one * 3 + b"l.")
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (lambda t, f: torch.save(torch.nn.Linear(2, 2), f), r"more than tensors \(torch\.nn\.modules\.linear\.Linear"),
        (lambda t, f: torch.save({**t, "code": Code()}, f), r"more than tensors \(\w*\.?mkdir"),
        (lambda t, f: Path(f).write_bytes(pickle.dumps(Code(), 2)), r"more than tensors \(\w*\.?mkdir|damaged"),
        (lambda t, f: Path(f).write_bytes(pickle.dumps(Code(), 0)), "more than tensors|damaged"),
        (lambda t, f: legacy({"code": Code()}, f), r"more than tensors \(\w*\.?mkdir"),
        (lambda t, f: (torch.save(t, f), os.truncate(f, 10_000)), "cut or damaged"),
        (lambda t, f: (legacy(t, f), os.truncate(f, 10_000)), "cut or damaged"),
        (lambda t, f: Path(f).write_bytes(b""), "cut or damaged"),
        (lambda t, f: torch.save({"w": torch.ones(2)}, f), r"lack 66 of the 67 tensors .*they hold w"),
        (lambda t, f: torch.save({"model": t}, f), "they hold nothing"),
        (lambda t, f: torch.save([1, 2], f), "they hold nothing"),
        (packed, "may unfold without end"),
        (endless, "more than it holds"),
        (unfolding, r"more than tensors \(_codecs\.encode"),
    ],
)  # fmt: skip
def test_a_bin_that_is_no_state_dict_is_a_sentence_and_nothing_is_run(folder, tmp_path, monkeypatch, bad, sentence):
    place, tensors = folder
    monkeypatch.chdir(tmp_path)
    bad(tensors, str(place / "pytorch_model.bin"))
    with pytest.raises(UserError, match=sentence) as caught:
        load_encoder(place)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is reset as Linux does")
def test_a_bomb_takes_no_memory(folder):
    def peak():
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    place, tensors = folder
    for make in (packed, endless, unfolding):
        make({**tensors, "x": torch.zeros(1 << 26)} if make is endless else tensors, str(place / "pytorch_model.bin"))
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        with pytest.raises(UserError):
            load_encoder(place)
        assert peak() - before < 50_000, make  # kB; the first would unfold to 268 MB, the second to as much


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_hidden_layers": 4}, r"lack 16 of the 83 tensors"),
        ({"num_hidden_layers": 2}, r"hold 16 tensors that its config does not know \(such as encoder\.layers\.2\."),
        ({"intermediate_size": 100}, r"as 100( x 64)?, its weights hold 96( x 64)?"),
        ({"hidden_size": 1 << 30}, "hidden_size = "), ({"hidden_size": 16_000}, "its weights hold"),
        ({"quantization_config": {}}, "quantised"),
    ],
)  # fmt: skip
def test_a_config_that_disagrees_with_the_weights_is_a_sentence(folder, change, sentence):
    place, tensors = folder
    save_file(tensors, place / "model.safetensors")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=sentence):
        load_encoder(place)


def test_a_folder_with_two_weights_takes_no_chance(folder, checkpoint):
    place, tensors = folder
    save_file(tensors, place / "model.safetensors")
    torch.save({name: value.half() for name, value in old_names(tensors).items()}, place / "pytorch_model.bin")
    assert load_encoder(place).source == "model.safetensors"  # the same in half precision
    others = {name: value + 0.1 for name, value in tensors.items()}
    torch.save(others, place / "pytorch_model.bin")
    with pytest.raises(UserError, match="two weights that differ"):
        load_encoder(place)
    (place / "pytorch_model.bin").write_bytes(b"no weights")
    load_encoder(place)  # what cannot be read is not asked
    write_shards(place, tensors, "model.safetensors", save_file)
    with pytest.raises(UserError, match="holds both model"):
        load_encoder(place)


def test_numbers_that_are_none_or_whole_are_refused(folder):
    place, tensors = folder
    save_file({name: (value * 100).to(torch.int8) for name, value in tensors.items()}, place / "model.safetensors")
    with pytest.raises(UserError, match="quantised"):
        load_encoder(place)
    tensors["encoder.layer_norm.weight"][0] = float("nan")
    save_file(tensors, place / "model.safetensors")
    with pytest.raises(UserError, match="not numbers"):
        load_encoder(place)


def test_what_a_folder_lacks_is_named(folder, tmp_path):
    place, tensors = folder
    with pytest.raises(UserError, match=r"no weights .*it holds config\.json, preprocessor_config\.json"):
        locate(place)
    (place / "flax_model.msgpack").touch()
    with pytest.raises(UserError, match=r"flax_model\.msgpack.*saved with PyTorch"):
        locate(place)
    write_shards(place, tensors, "model.safetensors", save_file)
    (place / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="lacks model-00002-of-00002"):
        locate(place)
    (place / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    with pytest.raises(UserError, match="of its own folder"):
        locate(place)
    with pytest.raises(UserError, match=r"is a file"):
        locate(place / "config.json")
    (place / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        locate(place)


def test_names_are_looked_up_here_before_the_hub(folder, tmp_path, monkeypatch):
    place, tensors = folder
    save_file(tensors, place / "model.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/teacher").folder == place
    assert locate("mini-hubert").source == "model.safetensors"
    for name, sentence in (
        ("mini-hubrt", "Did you mean 'mini-hubert'"), (f"{tmp_path}/teachr", "Did you mean 'teacher'"),
        ("./x", "no model folder"), ("a/b/c", "no model folder"), ("~/nothing", "no model folder"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=sentence):
            locate(name)
