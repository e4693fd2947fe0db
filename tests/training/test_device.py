"""Laws of a step on a GPU: lengths stay on the host, and nothing in a step waits for the device."""

from contextlib import nullcontext

import pytest
import torch

from robustdistiller.config import EnhancementConfig, ObjectivesConfig, StudentConfig, load_recipe
from robustdistiller.distributed import Distributed
from robustdistiller.models.building import build_student
from robustdistiller.models.teacher import load_teacher
from robustdistiller.objectives.total import total_loss
from robustdistiller.training.distill import distill
from robustdistiller.training.observer import Observer


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [*((k, [9600, 9600]) for k in ("hubert", "wavlm", "wav2vec2", "whisper")), ("wavlm", [9600, 7000])],
)
def test_a_forward_and_backward_pass_reads_nothing_from_the_device(checkpoint, kind, lengths, monkeypatch):
    """Tensors on the device `meta` have shapes and no values: whatever asks for a value there raises.

    Batches are equally long but where fixed crops or shards meet. There `transformers` reads the mask of all models but WavLM.
    """
    monkeypatch.setattr(torch, "autocast", lambda *device, **options: nullcontext())  # `meta` knows none
    teacher = load_teacher(str(checkpoint(kind)), precision="fp32")
    objectives = ObjectivesConfig(
        correlation=0.1, enhancement=EnhancementConfig(hidden=8, layers=1, window_seconds=0.2)
    )
    student, _ = build_student(teacher, StudentConfig(), objectives.enhancement)
    teacher, student = teacher.to("meta"), student.to("meta").train()
    clean = torch.zeros(2, 9600, device="meta")
    try:
        target = teacher(clean, torch.tensor(lengths))
        output = student(clean, torch.tensor(lengths))
        loss = total_loss(objectives, output, target, clean)
        (loss.total * torch.ones(2, device="meta")).sum().backward()
    except (NotImplementedError, RuntimeError) as error:
        raise AssertionError(f"a value was asked for, or host and device were mixed: {error}") from error
    assert target.lengths.device.type == "cpu" and output.encoded.lengths.device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_of_a_training_never_waits_for_the_gpu(checkpoint, speech, tmp_path):
    """Loading, rendering, both networks, losses, the optimiser. Crops are longer than a window of the enhancement head."""
    import warnings

    class Watch(Observer):
        def step(self, step, metrics):
            torch.cuda.set_sync_debug_mode("warn" if 4 < step < 8 else "default")

    fields = [
        "data.crop_seconds=1.0", "data.batch_seconds=5.0", "data.valid_seconds=4", "data.workers=0", "data.valid_fraction=0.25",
        "environment.simulated_rooms=3", "objectives.enhancement.window_seconds=0.5", "training.steps=10",
        "training.log_every=100", "training.valid_every=100", "training.save_every=100",
    ]  # fmt: skip
    recipe = load_recipe(None, fields, teacher__model=str(checkpoint("hubert")), data__speech=[str(speech)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        distill(recipe, tmp_path / "run", observer=Watch())
    # The first time that it is switched on the detector says of itself that it is a prototype, which is no wait.
    waits = [w for w in caught if "called a synchronizing" in str(w.message)]
    assert not waits, [f"{w.filename}:{w.lineno}" for w in waits]
    assert Distributed().device.type == "cuda"
