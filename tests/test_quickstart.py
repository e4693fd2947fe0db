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


@pytest.mark.timeout(900)
def test_a_small_quickstart_ends_in_its_page(tmp_path, monkeypatch):
    size = Size((12, 6), (24, 12, 24), (6, 3, 3))
    build, recipe = module.build_corpus, load_recipe
    monkeypatch.setattr(
        module, "build_corpus", lambda out, seed, name, progress: build(out, seed, size, progress=progress)
    )

    def short(name, **fields):
        quick = ["training.steps=2", "data.crop_seconds=1.5", "data.batch_seconds=6", "environment.simulated_rooms=2"]
        return recipe(name, [*quick, "data.valid_seconds=4", "data.workers=0"], **fields)

    def few(models, tasks, conditions, out, **rest):
        """The real benchmark under two conditions instead of thirteen, with heads of seconds."""
        conditions = tmp_path / "few.yaml"
        conditions.write_text(
            "name: few\nnoise:\n  sources: [{name: wind, kind: wind}]\n  snr_db: [5]\n", encoding="utf-8"
        )
        return evaluate(models, tasks, conditions, out, **rest)

    evaluate = module.evaluate
    monkeypatch.setattr(module, "evaluate", few)
    monkeypatch.setattr(module, "engine_available", lambda: False)  # it comes from the network

    monkeypatch.setattr(module, "load_recipe", short)
    monkeypatch.setattr(module, "Settings", lambda seed, similarity: module_settings(seed))
    check(module.quickstart(tmp_path / "out"), tmp_path / "out")


def module_settings(seed):
    from robustdistiller.evaluation.benchmark import Settings
    from robustdistiller.evaluation.task_heads import HeadConfig

    heads = HeadConfig(learning_rates=(1e-3,), weight_decays=(1e-2,), epochs=2, steps=20)
    return Settings(seed=seed, seeds=1, replicates=200, similarity=0, heads=heads)


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
