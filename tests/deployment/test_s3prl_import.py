"""Checkpoints of s3prl's distiller come in key by key; what else a file may hold does not.

The reference below is written from the equations of DistilHuBERT (arXiv 2110.01900) and wav2vec 2.0 (arXiv 2006.11477) on
the names and shapes of such a checkpoint; it shares no code with what is tested.
"""

import argparse
import math
import os
import pickle
import resource
import zipfile

import pytest
import torch
from torch.nn import functional

from robustdistiller.deployment.s3prl_import import build, conv_layers, import_checkpoint, read_checkpoint
from robustdistiller.errors import UserError
from robustdistiller.models.student import load_student

CONVOLUTIONS = [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]
WIDTH, HIDDEN, INNER, HEADS, KERNEL, GROUPS, TARGETS = 24, 32, 48, 4, 16, 2, 40


def checkpoint_values(tasks=3, mode="default", norm_first=False, layers=2, width=WIDTH, new_names=False, seed=0):
    """Random tensors under the names and in the shapes of such a checkpoint, and its settings."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape, around=0.0):
        return around + torch.randn(*shape, generator=g) / math.sqrt(shape[-1] if len(shape) > 1 else 10)

    t = {}
    size = 1
    for i, (kernel, _) in enumerate(CONVOLUTIONS):
        t[f"feature_extractor.conv_layers.{i}.0.weight"] = draw(width, size, kernel)
        if mode == "layer_norm" or i == 0:
            norm = "2.1" if mode == "layer_norm" else "2"
            t[f"feature_extractor.conv_layers.{i}.{norm}.weight"] = draw(width, around=1.0)
            t[f"feature_extractor.conv_layers.{i}.{norm}.bias"] = draw(width)
        size = width
    if width != HIDDEN:
        t |= {"post_extract_proj.weight": draw(HIDDEN, width), "post_extract_proj.bias": draw(HIDDEN)}
    parametrised = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    g_name, v_name = parametrised if new_names else ("weight_g", "weight_v")
    t["encoder.pos_conv.0.bias"] = draw(HIDDEN)
    t[f"encoder.pos_conv.0.{g_name}"] = draw(1, 1, KERNEL, around=2.0)
    t[f"encoder.pos_conv.0.{v_name}"] = draw(HIDDEN, HIDDEN // GROUPS, KERNEL)
    for i in range(layers):
        for name, shape in {
            "self_attn.k_proj": (HIDDEN, HIDDEN), "self_attn.v_proj": (HIDDEN, HIDDEN), "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.out_proj": (HIDDEN, HIDDEN), "fc1": (INNER, HIDDEN), "fc2": (HIDDEN, INNER),
        }.items():  # fmt: skip
            t[f"encoder.layers.{i}.{name}.weight"], t[f"encoder.layers.{i}.{name}.bias"] = draw(*shape), draw(shape[0])
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            t[f"encoder.layers.{i}.{name}.weight"] = draw(HIDDEN, around=1.0)
            t[f"encoder.layers.{i}.{name}.bias"] = draw(HIDDEN)
    t["encoder.layer_norm.weight"], t["encoder.layer_norm.bias"] = draw(HIDDEN, around=1.0), draw(HIDDEN)
    t["output_layer.0.weight"], t["output_layer.0.bias"] = draw(tasks * HIDDEN, HIDDEN), draw(tasks * HIDDEN)
    if tasks == 1:
        t["output_layer.2.layer.weight"], t["output_layer.2.layer.bias"] = draw(TARGETS, HIDDEN), draw(TARGETS)
    else:
        t["output_layer.2.weight"], t["output_layer.2.bias"] = draw(tasks, HIDDEN, TARGETS), draw(1, 1, tasks, TARGETS)
    convolutions = f"[({width},10,5)] + [({width},3,2)] * 4 + [({width},2,2)] * 2"
    distiller = {
        "extractor_mode": mode, "extractor_conv_feature_layers": convolutions, "encoder_attention_heads": HEADS,
        "layer_norm_first": norm_first, "n_tasks": tasks, "pred_layer_id": [4, 8, 12][:tasks],
        "task_emb_type": "expand-last", "out_layer_type": "expand-last", "final_dim": TARGETS, "conv_pos": KERNEL,
    }  # fmt: skip
    return {
        "Distiller": t, "Config": {"distiller": distiller, "teacher": {"model": "wavlm", "n_layers": 12}}, "Step": 200_000,
        "Optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 2e-4, "params": [0]}]},
        "Args": argparse.Namespace(upstream="robust_distiller", expname="rd", seed=1337, multi_gpu=False),
    }  # fmt: skip


def reference(t, wave, tasks=3, mode="default", norm_first=False, layers=2):
    """The states [projected, layer 1, …] and predictions that such a checkpoint stands for; wave (B, T)."""
    norm = lambda x, name: functional.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"])  # noqa: E731
    linear = lambda x, name: x @ t[f"{name}.weight"].T + t[f"{name}.bias"]  # noqa: E731
    x = wave[:, None]
    for i, (_, stride) in enumerate(CONVOLUTIONS):
        name = f"feature_extractor.conv_layers.{i}"
        x = functional.conv1d(x, t[f"{name}.0.weight"], stride=stride)
        if mode == "layer_norm":
            x = norm(x.transpose(1, 2), f"{name}.2.1").transpose(1, 2)
        elif i == 0:  # over time, each channel for itself
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
            x = x * t[f"{name}.2.weight"][:, None] + t[f"{name}.2.bias"][:, None]
        x = functional.gelu(x)
    x = x.transpose(1, 2)
    projected = linear(x, "post_extract_proj") if "post_extract_proj.weight" in t else x
    pick = lambda *names: next(t[f"encoder.pos_conv.0.{n}"] for n in names if f"encoder.pos_conv.0.{n}" in t)  # noqa: E731
    v = pick("weight_v", "parametrizations.weight.original1")
    weight = pick("weight_g", "parametrizations.weight.original0") * v / v.square().sum((0, 1), keepdim=True).sqrt()
    across = projected.transpose(1, 2)
    position = functional.conv1d(across, weight, t["encoder.pos_conv.0.bias"], padding=KERNEL // 2, groups=GROUPS)
    x = projected + functional.gelu(position[..., :-1]).transpose(1, 2)
    x = x if norm_first else norm(x, "encoder.layer_norm")
    states = [projected]
    for i in range(layers):
        name = f"encoder.layers.{i}"

        def attend(x, name=name):
            split = lambda part: linear(x, f"{name}.self_attn.{part}").unflatten(-1, (HEADS, -1)).transpose(1, 2)  # noqa: E731
            q, k, v = split("q_proj"), split("k_proj"), split("v_proj")
            weights = (q @ k.transpose(-1, -2) / math.sqrt(HIDDEN // HEADS)).softmax(-1)
            return linear((weights @ v).transpose(1, 2).flatten(2), f"{name}.self_attn.out_proj")

        def feed(x, name=name):
            return linear(functional.gelu(linear(x, f"{name}.fc1")), f"{name}.fc2")

        if norm_first:
            x = x + attend(norm(x, f"{name}.self_attn_layer_norm"))
            x = x + feed(norm(x, f"{name}.final_layer_norm"))
        else:
            x = norm(x + attend(x), f"{name}.self_attn_layer_norm")
            x = norm(x + feed(x), f"{name}.final_layer_norm")
        states.append(x)
    if norm_first:
        states[-1] = x = norm(x, "encoder.layer_norm")
    inner = functional.gelu(linear(x, "output_layer.0"))
    if tasks == 1:
        predictions = [linear(inner, "output_layer.2.layer")]
    else:
        parts = inner.split(HIDDEN, -1)
        outputs = zip(parts, t["output_layer.2.weight"], t["output_layer.2.bias"][0, 0], strict=True)
        predictions = [part @ weight + bias for part, weight, bias in outputs]
    return torch.stack(states, 1), torch.stack(predictions, 1)


VARIANTS = {
    "the authors' students": {},
    "one target layer": {"tasks": 1},
    "layer norm in the convolutions, norms first": {"mode": "layer_norm", "norm_first": True},
    "no projection": {"width": HIDDEN},
    "new names of the weight norm, three layers": {"new_names": True, "layers": 3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_imported_student_computes_what_the_checkpoint_stands_for(variant, tmp_path):
    options = VARIANTS[variant]
    values = checkpoint_values(**options)
    torch.save(values, tmp_path / "rd_wavlm.ckpt")
    done = import_checkpoint(tmp_path / "rd_wavlm.ckpt", tmp_path / "student")
    assert (done.teacher, done.step) == ("wavlm", 200_000)
    student = load_student(tmp_path / "student")
    assert student.layers == (4, 8, 12)[: options.get("tasks", 3)] and not student.encoder.normalize
    wave = 0.1 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(1))
    known = {k: v for k, v in options.items() if k in ("tasks", "mode", "norm_first", "layers")}
    # In float64: two orders of the same sums in float32 are 3e-4 apart on some processors.
    tensors = {name: value.double() for name, value in values["Distiller"].items()}
    states, predictions = reference(tensors, wave.double(), **known)
    with torch.no_grad():
        output = student.double()(wave.double(), enhance=False)
    torch.testing.assert_close(torch.stack(output.encoded.states, 1), states, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(output.predictions, predictions, atol=1e-6, rtol=1e-6)


def test_transformers_opens_the_imported_folder(tmp_path):
    from transformers import AutoModel

    values = checkpoint_values()
    torch.save(values, tmp_path / "rd.ckpt")
    import_checkpoint(tmp_path / "rd.ckpt", tmp_path / "student")
    model = AutoModel.from_pretrained(tmp_path / "student").eval()
    wave = 0.1 * torch.randn(1, 2000)
    with torch.no_grad():
        found = model(wave).last_hidden_state
    torch.testing.assert_close(found, reference(values["Distiller"], wave)[0][:, -1], atol=2e-5, rtol=1e-4)


def test_a_checkpoint_without_heads_comes_in_without_heads():
    values = checkpoint_values()
    tensors = {k: v for k, v in values["Distiller"].items() if not k.startswith("output_layer")}
    assert build(tensors, values["Config"]["distiller"], "x").heads is None


def changed(change):
    values = checkpoint_values()
    change(values, values["Distiller"], values["Config"]["distiller"])
    return values


REFUSED = {
    "unexpected tensors": lambda v, t, c: t.update({"mystery.weight": torch.zeros(2)}),
    "WavLM's position bias": lambda v, t, c: t.update({"encoder.layers.0.self_attn.grep_a": torch.zeros(1)}),
    "lacks the tensor encoder.layers.1.fc2.bias": lambda v, t, c: t.pop("encoder.layers.1.fc2.bias"),
    "do not fit together": lambda v, t, c: t.update({"encoder.layers.1.fc2.bias": torch.zeros(5)}),
    "not those of its settings": lambda v, t, c: c.update(extractor_conv_feature_layers="[(99,10,5)] * 7"),
    "cannot be read from": lambda v, t, c: c.update(extractor_conv_feature_layers="__import__('os').system('true')"),
    "not numbers": lambda v, t, c: t["encoder.layer_norm.bias"].fill_(float("nan")),
    "attention heads for 32 dimensions": lambda v, t, c: c.update(encoder_attention_heads=5),
    "not a whole number": lambda v, t, c: c.update(n_tasks="three"),
    "as the layers of its 3 heads": lambda v, t, c: c.update(pred_layer_id=[4, 8]),
    "task embeddings": lambda v, t, c: c.update(task_emb_type="concat"),
    "no counterpart here": lambda v, t, c: c.update(attention_type="sparse"),
    "out_layer_inter_dim": lambda v, t, c: t.update({"output_layer.0.weight": torch.zeros(60, HIDDEN)}),
    "no 'Distiller' and 'Config'": lambda v, t, c: v.pop("Config"),
    "a pruned model": lambda v, t, c: (v.clear(), v.update(state_dict={}, config={})),
    "no set of named tensors": lambda v, t, c: v.update(Distiller=[1, 2]),
    "no 'distiller' section": lambda v, t, c: v.update(Config={"student": 1}),
    "every 160 samples": lambda v, t, c: c.update(
        extractor_conv_feature_layers=f"[({WIDTH},10,5)] + [({WIDTH},3,2)] * 4 + [({WIDTH},2,2), ({WIDTH},2,1)]"
    ),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(sentence, tmp_path):
    torch.save(changed(REFUSED[sentence]), tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=sentence) as caught:
        import_checkpoint(tmp_path / "x.ckpt", tmp_path / "student")
    assert "\n" not in str(caught.value) and not (tmp_path / "student").exists()


class Trap:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def test_no_code_of_a_checkpoint_runs(tmp_path):
    values = {**checkpoint_values(), "Scheduler": Trap(tmp_path / "sprung")}
    torch.save(values, tmp_path / "trap.ckpt")
    with pytest.raises(UserError, match=r"holds more than tensors \((posix|os|nt)\.system\)"):
        read_checkpoint(tmp_path / "trap.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(UserError, match="no complete PyTorch checkpoint"):
        read_checkpoint(tmp_path / "plain.ckpt")
    assert not (tmp_path / "sprung").exists()


def test_broken_and_inflated_files_are_refused(tmp_path):
    torch.save(checkpoint_values(), tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    for share in (0.0, 0.5, 0.99):
        (tmp_path / "cut.ckpt").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match="no complete PyTorch checkpoint"):
            read_checkpoint(tmp_path / "cut.ckpt")
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 5_000_000)
    with pytest.raises(UserError, match="is packed"):
        read_checkpoint(tmp_path / "bomb.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(UserError, match="holds a list"):
        read_checkpoint(tmp_path / "list.ckpt")
    with pytest.raises(UserError, match="There is no checkpoint"):
        read_checkpoint(tmp_path / "none.ckpt")


HOSTILE = {
    "expanded to 50 GB": lambda v, t, c: t.update({"encoder.layers.1.fc2.bias": torch.zeros(1).expand(12_500_000_000)}),
    "expanded in two ways": lambda v, t, c: t.update(
        {"post_extract_proj.weight": torch.zeros(1, 1).expand(100_000, 100_000)}
    ),
    "quantised": lambda v, t, c: t.update(
        {"encoder.layers.1.fc2.bias": torch.quantize_per_tensor(torch.zeros(HIDDEN), 1.0, 0, torch.qint8)}
    ),
    "sparse": lambda v, t, c: t.update({"encoder.layers.1.fc2.weight": torch.zeros(HIDDEN, 64).to_sparse()}),
    "without dimensions": lambda v, t, c: t.update({name: torch.tensor(1.0) for name in list(t)}),
    "empty": lambda v, t, c: t.update({name: torch.zeros(0) for name in list(t)}),
    "no tensors": lambda v, t, c: t.clear(),
    "of integers": lambda v, t, c: t.update({"encoder.layer_norm.weight": torch.ones(HIDDEN, dtype=torch.int64)}),
    "complex": lambda v, t, c: t.update({"encoder.layer_norm.weight": torch.ones(HIDDEN, dtype=torch.complex64)}),
    "surrogates": lambda v, t, c: t.update({"\udc80": torch.zeros(2)}),
    "a surrogate as a value": lambda v, t, c: c.update(attention_type="\udc80"),
    "a number of 400 digits": lambda v, t, c: c.update(pred_layer_id=[10**400]),
    "layers of 400 digits": lambda v, t, c: c.update(encoder_layers=10**400),
    "dropout of 400 digits": lambda v, t, c: c.update(dropout=10**400),
    "heads that are true": lambda v, t, c: c.update(encoder_attention_heads=True),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_checkpoints_of_strangers_are_students_or_a_sentence(case, tmp_path):
    torch.save(changed(HOSTILE[case]), tmp_path / "x.ckpt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        import_checkpoint(tmp_path / "x.ckpt", tmp_path / "student")
    except UserError as error:
        assert str(error).isprintable() and not (tmp_path / "student").exists()
    else:
        assert torch.isfinite(load_student(tmp_path / "student").states(torch.zeros(1, 2000))[0]).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kilobytes


def test_convolutions_are_read_not_evaluated():
    text = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
    assert conv_layers(text) == [(512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2]
    for bad in ("", "7", "[(1,2)]", "[(512,10,5)] * 10**9", "[(0,1,1)]", "[x for x in ()]", "(" * 300, "[(True,1,1)]"):
        with pytest.raises(UserError):
            conv_layers(bad)
