"""The quickstart ends in a page that says what was measured; a small one of seconds here, the real one behind `slow`."""

import json

import pytest

from robustdistiller import quickstart as module
from robustdistiller.config import load_recipe
from robustdistiller.synthetic.spoken import Size

pytest.importorskip("espeakng_loader")
pytest.importorskip("matplotlib")


def check(done, out):
    text = done.page.read_text(encoding="utf-8")
    assert "http" + "s://" not in text.replace("https://www.w3.org", "") or 'src="http' not in text
    for part in (
        "Spoken commands",
        "Size and speed",
        "Enhancement, before and after",
        "espeak-ng",
        "<audio",
        "data:image/png",
    ):
        assert part in text
    models = [model["name"] for model in json.loads((out / "benchmark" / "benchmark.json").read_text())["models"]]
    assert models == ["teacher", "plain", "robust", "log-mel"]
    assert (out / "mini-robust" / "student" / "model.safetensors").is_file()
    assert (out / "enhancement" / "0-wind-enhanced.wav").is_file()
    assert done.sentence in text.replace("&#x27;", "'") and "robust student" in done.sentence
    assert len(list(done.exported.glob("*.onnx"))) == 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_quickstart_ends_in_its_page(tmp_path, monkeypatch):
    size = Size((24, 8), (36, 12, 24), (6, 3, 3))
    build, recipe = module.build_corpus, load_recipe
    monkeypatch.setattr(
        module, "build_corpus", lambda out, seed, name, progress: build(out, seed, size, progress=progress)
    )

    def short(name, **fields):
        quick = ["training.steps=4", "training.valid_every=2", "data.batch_seconds=8", "environment.simulated_rooms=3"]
        return recipe(name, [*quick, "data.valid_seconds=6"], **fields)

    monkeypatch.setattr(module, "load_recipe", short)
    monkeypatch.setattr(module, "Settings", lambda seed, similarity: module_settings(seed))
    check(module.quickstart(tmp_path / "out"), tmp_path / "out")


def module_settings(seed):
    from robustdistiller.evaluation.benchmark import Settings

    return Settings(seed=seed, seeds=1, replicates=200, similarity=4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_robust_student_beats_the_baseline_in_noise(tmp_path):
    out = tmp_path / "out"
    done = module.quickstart(out)
    check(done, out)
    result = done.result
    measure = result.measures(result.tasks[0])[0]
    figure = measure.get("robust", "mean:noise")
    assert figure["significant"] and figure["difference_value"] > 0
