"""The verb that lists what can be distilled, and checks one model without training."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

from ..files import telling_name
from .options import argument
from .output import Json, answer, say, say_json

KINDS = {
    "hubert": "facebook/hubert-base-ls960, facebook/hubert-large-ll60k, utter-project/mHuBERT-147, mini-hubert (shipped)",
    "wavlm": "microsoft/wavlm-base-plus, microsoft/wavlm-large",
    "wav2vec2": "facebook/wav2vec2-base, facebook/wav2vec2-xls-r-300m, facebook/mms-300m",
    "wav2vec2-conformer": "facebook/wav2vec2-conformer-rope-large-960h-ft",
    "wav2vec2-bert": "facebook/w2v-bert-2.0",
    "data2vec-audio": "facebook/data2vec-audio-base",
    "unispeech": "microsoft/unispeech-large-1500h-cv",
    "unispeech-sat": "microsoft/unispeech-sat-base-plus",
    "sew": "asapp/sew-tiny-100k",
    "sew-d": "asapp/sew-d-tiny-100k",
    "whisper": "openai/whisper-tiny.en, openai/whisper-small (their encoders)",
}
"""`model_type` of a config → names on the hub, or shipped ones."""

RECIPES = {
    "wavlm": "robust-wavlm-base-plus", "wav2vec2": "robust-wav2vec2-base", "whisper": "robust-whisper-tiny-en",
    "wav2vec2-bert": "robust-whisper-tiny-en",  # whose student starts from random weights
}  # fmt: skip
"""The recipe to start from; HuBERT's for every other kind."""


def teachers(
    name: Annotated[
        str | None, argument("A hub name (owner/name, owner/name@revision), folder or shipped model.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the kinds of models that can be distilled, or check one: its files, layers, frames, and whether it loads.

    Example: `robustdistiller teachers facebook/hubert-base-ls960`
    """
    if name is None:
        width = max(map(len, KINDS))
        lines = [f"{kind:<{width}}  {names}" for kind, names in KINDS.items()]
        hint = "Check one, fetching it where it is not here yet:  robustdistiller teachers NAME"
        answer(as_json, KINDS, *lines, "", hint)
        return
    found = examine(name)
    if as_json:
        say_json(found)
        return
    norm = "zero mean and unit variance" if found["normalize"] else "as it is"
    say(
        f"{name}: {found['kind']}, {found['parameters'] / 1e6:.1f} M parameters, {found['layers']} layers of {found['width']}",
        f"files: {found['source']}, in {found['folder']}",
        f"targets by default: layers {', '.join(map(str, found['targets']))}"
        + (", each frame normalised" if found["target_norm"] == "layer" else ""),
        f"input: {found['input']}" + (f", {norm}" if found["input"] == "waveform" else ""),
        f"frames: every {found['frame_ms']:g} ms, centred at {found['centre_ms']:g} ms; it loads, and 1 s gives "
        f"{found['frames']} frames",
        "",
        found["command"],
    )


def examine(name: str) -> dict[str, Any]:
    """Load a teacher, run it on a second of noise, and describe it in plain values.

    Raises:
        UserError: it cannot be loaded or distilled.
    """
    import torch

    from ..config import load_recipe
    from ..errors import UserError
    from ..models.hub import FROM_LOG_MEL, load_encoder
    from ..models.repository import locate
    from ..models.teacher import Teacher

    files = locate(name)
    teacher = Teacher(load_encoder(files), name=name, precision="fp32")
    grid = teacher.encoder.grid
    kind = teacher.encoder.model.config.model_type
    hidden, frames = teacher.states(0.05 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0)))
    if not bool(torch.isfinite(hidden).all()):
        raise UserError(f"{name} loads, but what it gives are no numbers: download it again.")
    recipe = "mini-robust" if name == "mini-hubert" else RECIPES.get(kind, "robust-hubert-base")
    command = ["robustdistiller", "distill", recipe, "--teacher", name]
    if load_recipe(recipe).teacher.layers not in (None, teacher.layers):
        command += ["--set", f"teacher.layers={list(teacher.layers)}"]
    command += ["--speech", "SPEECH/", "--noise", "NOISE/", "--rooms", "ROOMS/", "--out", f"runs/{telling_name(name)}"]
    return {
        "kind": kind, "parameters": teacher.num_parameters, "layers": teacher.num_layers, "width": teacher.hidden_size,
        "source": files.source, "folder": str(files.folder), "targets": list(teacher.layers),
        "target_norm": teacher.target_norm, "input": "log-mel" if kind in FROM_LOG_MEL else "waveform",
        "normalize": teacher.normalize, "frame_ms": grid.stride / 16, "centre_ms": grid.offset / 16,
        "frames": int(frames), "command": shlex.join(command),
    }  # fmt: skip
