"""The student folder of a run: weights, heads, resolved recipe, provenance, and a model card written from what was measured."""

from __future__ import annotations

from pathlib import Path

import yaml

from .. import __version__
from ..config import Recipe
from ..errors import code, markdown
from ..files import telling_name
from ..models.student import Student
from ..models.teacher import Teacher
from ..provenance import PROVENANCE, TrainingExposure, noise_kinds
from .checkpoint import TrainingProgress
from .materials import Materials


def write_student(
    folder: Path,
    student: Student,
    recipe: Recipe,
    materials: Materials,
    teacher: Teacher,
    progress: TrainingProgress,
    metrics: dict[str, float],
    earlier: TrainingExposure,
) -> None:
    """Replace `folder` by the student as it is now; `earlier` is what the models were trained on that the run builds upon."""
    texts = {
        "README.md": card(student, recipe, materials, teacher, progress, metrics),
        "recipe.yaml": yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True),
        PROVENANCE: (earlier | materials.provenance() | TrainingExposure(noise_kinds=noise_kinds(recipe))).to_json(),
    }
    student.save(folder, texts)


def card(
    student: Student,
    recipe: Recipe,
    materials: Materials,
    teacher: Teacher,
    progress: TrainingProgress,
    metrics: dict[str, float],
) -> str:
    """A model card in Markdown with the hub's front matter."""
    environment, objectives = recipe.environment, recipe.objectives
    shares = {kind: getattr(environment, kind) for kind in ("clean", "noise", "reverb", "both")}
    total = sum(shares.values())
    mix = ", ".join(f"{share / total:.0%} {kind}" for kind, share in shares.items() if share)
    enhancement = objectives.enhancement
    task = f"L1 on the spectrogram, tapped at {enhancement.tap}" if enhancement.enabled else "none"
    place = teacher.name.count("/") > 1 or teacher.name.startswith(".")
    teacher_name = Path(teacher.name).name if place else teacher.name
    init = recipe.student.init
    prior = f"- First weights: `{code(telling_name(init))}`, which had been trained before.\n"
    start = "" if init in ("teacher", "random") else prior
    rows = "\n".join(f"| {name} | {metrics[key]:.4g} |" for name, key in _ROWS if key in metrics)
    return f"""---
library_name: transformers
tags: [speech, distillation, robustness, robustdistiller]
---
# {markdown(recipe.name)}

A speech encoder of {student.num_parameters / 1e6:.2f} M parameters distilled by RobustDistiller {__version__} from
`{code(teacher_name)}` ({teacher.source}; {teacher.num_parameters / 1e6:.1f} M), layers
{", ".join(map(str, teacher.layers))}.
It turns 16 kHz mono speech into a {student.hidden_size}-dimensional vector every 20 ms.

```python
from transformers import AutoModel, AutoFeatureExtractor
extractor, model = AutoFeatureExtractor.from_pretrained(FOLDER), AutoModel.from_pretrained(FOLDER)

from robustdistiller import load_student      # with the prediction heads and the enhancement head
student = load_student(FOLDER)
```

Use the attention mask that the extractor returns. Even so a padded batch in `AutoModel` differs a little from each utterance
alone; `student.states(wave, lengths)` gives exactly what each utterance gives alone.

## Training

- Speech: {materials.hours:.2f} h, {materials.count} recordings; {progress.audio_seconds / 3600:.2f} h seen in
  {progress.step} steps (seed {recipe.training.seed}).
- Conditions: {mix}; SNR {environment.snr_db[0]:g} to {environment.snr_db[1]:g} dB;
  {len(materials.noise["train"])} noise recordings, {len(materials.rooms["train"])} room responses.
{start}- Enhancement task: {task}.
- Input normalisation (`do_normalize`): {student.encoder.normalize}.

## Validation

On {len(materials.valid)} held-out recordings, under noises and rooms that training never had, the same for every recipe.

| measure | value |
| --- | --- |
{rows}

The exact recipe is in `recipe.yaml`; the speakers, noises and rooms of training are listed in `provenance.json`.
"""


_ROWS = (
    ("distillation loss, clean speech", "distillation/clean"),
    ("distillation loss, contaminated speech", "distillation/contaminated"),
    ("SI-SDR of the contaminated speech (dB)", "si_sdr/in"), ("SI-SDR after enhancement (dB)", "si_sdr/out"),
    ("STOI of the contaminated speech", "stoi/in"), ("STOI after enhancement", "stoi/out"),
    ("PESQ of the contaminated speech", "pesq/in"), ("PESQ after enhancement", "pesq/out"),
)  # fmt: skip
