"""Pretraining of the mini teacher: a small encoder learns a larger one, layer by layer, on clean speech alone.

What is learned (docs/mini-teacher.md says why): linear heads on some depths of the mini predict some depths of a frozen
encoder, each dimension standardised. Both hear the same crop at the same level; frames are matched by time. Every crop is
a pure function of (seed, step, row) and everything else is in the checkpoint, so a run can be stopped anywhere and goes on
to the same weights.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from ..audio.io import SAMPLE_RATE
from ..config import Count, NonNegative, Positive, Probability, TrainingConfig
from ..errors import UserError, closest
from ..files import read_json, replacing_folder, write_json
from ..models.frames import GRID
from ..models.precision import pick_precision
from ..models.teacher import Teacher, load_teacher
from ..presets import shipped_folder
from ..randomness import integer
from . import checkpoint
from .metrics import MetricsLog
from .mini import Mini, MiniConfig, loss_terms
from .optimiser import build_optimiser
from .pretrain_speech import CropConfig, Pool, PoolConfig, draw, draw_mask, load_pools

log = logging.getLogger(__name__)

TEACHER_RMS = 0.06  # the level at which the teacher hears every crop: about -24 dBFS, usual for speech
BLOCK_SECONDS = 24.0  # of speech at once, where nothing is trained
SETTINGS = "pretrain.json"


class PretrainConfig(BaseModel):
    """A pretraining run; the defaults are those of the shipped mini teacher."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "mini-hubert"
    teacher: str = "openai/whisper-tiny.en"
    model: MiniConfig = MiniConfig()
    speech: dict[str, PoolConfig] = {}
    crops: CropConfig = CropConfig()
    batch_seconds: Positive = 12.0  # of speech in a step: on two cores, more steps are worth more than larger ones
    warmup_batch_seconds: Positive = 24.0  # the same during the warm-up
    statistics_crops: Count = 384  # over which mean and scale of the targets are measured
    valid_blocks: Count = 6  # of 24 s each
    cosine: NonNegative = 1.0  # weight of -log sigmoid(cosine) beside the L1
    mask: Probability = 0.0  # share of the projected frames that is hidden from the Transformer, in spans
    mask_span: Count = 10
    steps: Count = 4400
    learning_rate: Positive = 1e-3
    warmup_steps: Count = 300
    decay: Probability = 0.3  # share of the steps over which the learning rate falls to zero at the end
    weight_decay: NonNegative = 0.01
    clip: Positive = 1.0
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    shards: Count = 2  # parts of a batch worked on side by side on a CPU, see `gradients`
    log_every: Count = 25
    valid_every: Count = 250
    save_every: Count = 100


def load_pretrain_config(path: str | Path, architecture: str | None = None, **fields: Any) -> PretrainConfig:
    """Read a recipe by path or by the name of a shipped one (mini-hubert).

    `architecture` (of the mini) and `fields`, where they are not None, replace its values.

    Raises `UserError` for an unreadable file, an unknown field (with the closest known one) or a wrong value.
    """
    file = Path(path)
    if not file.is_file():
        file = shipped_folder("recipes") / "pretrain" / f"{file.stem}.yaml"
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise UserError(
                f"The recipe {path} must be a mapping of fields: start from recipes/pretrain/mini-hubert.yaml."
            )
        values |= {name: value for name, value in fields.items() if value is not None}
        if architecture is not None:
            values["model"] = {**(values.get("model") or {}), "architecture": architecture}
        return PretrainConfig.model_validate(values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"Cannot read the recipe {path} ({first}): check the path and its syntax.") from error
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"]))
        hint = closest(name, PretrainConfig.model_fields) if fault["type"] == "extra_forbidden" else ""
        raise UserError(f"The field '{name}' in the recipe {path} is wrong: {fault['msg']}.{hint}") from error


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Linear warm-up, a plateau, then a linear fall to zero over the last `decay` of the steps; `step` counts from 0.

    Nothing before the fall depends on `steps`: a run on a machine of unknown pace can be given its end while it goes.
    """
    fall = max(1, round(config.decay * config.steps))
    return config.learning_rate * max(0.0, min(1.0, (step + 1) / config.warmup_steps, (config.steps - step) / fall))


def pretrain(
    config: PretrainConfig,
    out: str | Path,
    roots: Sequence[str | Path] = (".",),
    *,
    device: str | torch.device = "cpu",
    stop_after: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Train the mini of `config` into the folder `out`, or go on there, and return the folder of the exported model.

    The manifests of ``config.speech`` are looked for under `roots`. `stop_after` ends the run at that step without
    exporting; the same call without it goes on. Raises `UserError` when `out` holds a run with another recipe.
    """
    out = Path(out)
    _same_run(config, out)
    pools = load_pools(config.speech, roots)
    valid_pools = load_pools(config.speech, roots, "valid")
    teacher = load_teacher(config.teacher, device=device)
    mini = train(config, pools, valid_pools, teacher, out, stop_after=stop_after, progress=progress)
    return out if stop_after and stop_after < config.steps else export(mini, out / "model")


def train(
    config: PretrainConfig,
    pools: Sequence[Pool],
    valid_pools: Sequence[Pool],
    teacher: Teacher,
    out: Path,
    *,
    stop_after: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Mini:
    """The loop: crops → gradients → weights, with checkpoints and metrics in `out`. The teacher's device is used."""
    out.mkdir(parents=True, exist_ok=True)
    device = next(teacher.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer(config.seed, "weights"))  # layers have no other way to be told their initial values
        mini = Mini(config.model, teacher.hidden_size, max(config.crops.seconds)).to(device)
    mini.mask_vector.requires_grad_(config.mask > 0)
    optimiser = build_optimiser(
        mini, TrainingConfig(learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    )
    precision = pick_precision(config.precision, device, mini)
    saved = checkpoint.available(out)
    if saved:
        state = checkpoint.load(saved[-1], mini, optimiser)
        log.info("going on from step %d", state.step)
    else:
        state = checkpoint.Progress()
        longest = config.crops.model_copy(update={"seconds": (max(config.crops.seconds),)})
        count = math.ceil(config.statistics_crops * max(longest.seconds) / BLOCK_SECONDS)
        mini.measure(
            [heard(teacher, draw(pools, longest, BLOCK_SECONDS, config.seed, f"statistics-{k}")) for k in range(count)]
        )
    valid = [
        draw(valid_pools, config.crops, BLOCK_SECONDS, config.seed, f"valid-{k}") for k in range(config.valid_blocks)
    ]
    last = min(config.steps, stop_after or config.steps)
    parameters = [p for p in mini.parameters() if p.requires_grad]
    shards = config.shards if device.type == "cpu" else 1
    threads = max(1, torch.get_num_threads() // shards)

    def batch(step: int) -> Tensor:
        seconds = config.warmup_batch_seconds if step < config.warmup_steps else config.batch_seconds
        return draw(pools, config.crops, seconds, config.seed, step)

    metrics = MetricsLog(out, state.step)
    meter: list[Tensor] = []
    began, base = time.monotonic(), state.seconds
    with (
        ThreadPoolExecutor(1) as loader,
        ThreadPoolExecutor(shards, initializer=torch.set_num_threads, initargs=(threads,)) as workers,
    ):
        ahead = loader.submit(batch, state.step)
        while state.step < last:
            wave = ahead.result()
            ahead = loader.submit(batch, state.step + 1)
            frames = int(GRID.count(torch.tensor(wave.shape[1])))
            mask = draw_mask(len(wave), frames, config.mask, config.mask_span, config.seed, state.step)
            parts = torch.arange(len(wave)).chunk(shards)
            jobs = [
                workers.submit(gradients, mini, teacher, wave[rows], _take(mask, rows), config, precision)
                for rows in parts
            ]
            results = [(job.result(), len(rows) / len(wave)) for job, rows in zip(jobs, parts, strict=True)]
            for k, parameter in enumerate(parameters):
                parameter.grad = torch.stack([grads[k] * share for (grads, _), share in results]).sum(0)
            terms = torch.stack([terms * share for (_, terms), share in results]).sum(0)
            norm = nn.utils.clip_grad_norm_(parameters, config.clip).cpu()
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, state.step)
            if bool(norm.isfinite()):
                optimiser.step()
            else:
                state.skipped_steps += 1
            state.step += 1
            state.audio_seconds += wave.numel() / SAMPLE_RATE
            state.seconds = base + time.monotonic() - began
            meter.append(torch.cat([terms, norm[None]]))
            if state.step % config.log_every == 0 or state.step == last:
                loss, *l1, mean_norm = torch.stack(meter).mean(0).tolist()
                meter.clear()
                row = {"loss": loss, "norm": mean_norm, "learning_rate": learning_rate(config, state.step - 1)}
                row |= {f"l1/{tap}": value for tap, value in zip(config.model.taps, l1, strict=True)}
                metrics.write(state.step, row | {"hours_heard": state.audio_seconds / 3600, "seconds": state.seconds})
                log.info("step %d: loss %.4f, %.2f h heard", state.step, loss, state.audio_seconds / 3600)
            if state.step % config.valid_every == 0 or state.step == last:
                metrics.write(state.step, validate(mini, teacher, valid, config, precision))
            if state.step % config.save_every == 0 or state.step == last:
                checkpoint.save(out, mini, optimiser, state, keep=2)
            if progress:
                progress(state.step, last)
    metrics.close()
    return mini


def _take(mask: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if mask is None else mask[rows]


def heard(teacher: Teacher, wave: Tensor) -> Tensor:
    """The states (B, S, F, D) of the teacher for crops of unit variance."""
    return teacher.states(wave.to(next(teacher.parameters()).device) * TEACHER_RMS)[0]


def gradients(
    mini: Mini, teacher: Teacher, wave: Tensor, mask: Tensor | None, config: PretrainConfig, precision: str
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Gradients of the loss of some rows, and [loss, L1 of each tap]. Safe to run in several threads at once.

    On a busy CPU two threads that each take half of the rows are more than twice as fast as two threads inside each
    operation, because they wait for each other once a step and not thousands of times.
    """
    l1, cosine = _terms(mini, teacher, wave, mask, precision)
    loss = l1.mean() + config.cosine * cosine.mean()
    parameters = [p for p in mini.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, parameters), torch.cat([loss[None], l1]).detach().cpu()


@torch.no_grad()
def validate(
    mini: Mini, teacher: Teacher, batches: Sequence[Tensor], config: PretrainConfig, precision: str
) -> dict[str, float]:
    """Loss and L1 of each tap on fixed crops of speakers that are not trained on."""
    rows = []
    for wave in batches:
        l1, cosine = _terms(mini, teacher, wave, None, precision)
        rows.append(torch.cat([(l1.mean() + config.cosine * cosine.mean())[None], l1]).cpu())
    loss, *l1_means = torch.stack(rows).mean(0).tolist()
    return {"valid/loss": loss} | {f"valid/l1/{t}": v for t, v in zip(config.model.taps, l1_means, strict=True)}


def _terms(mini: Mini, teacher: Teacher, wave: Tensor, mask: Tensor | None, precision: str) -> tuple[Tensor, Tensor]:
    wave = wave.to(mini.mean.device)
    target = mini.standardise(heard(teacher, wave))
    # Without the cache of cast weights, which all threads of a process share.
    with torch.autocast(wave.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        prediction = mini(wave, None if mask is None else mask.to(wave.device))
    return loss_terms(prediction, target)


def export(mini: Mini, folder: str | Path) -> Path:
    """Write the bare model in half precision, for `AutoModel.from_pretrained`, which opens it in float32."""
    from safetensors.torch import save_file
    from transformers import Wav2Vec2FeatureExtractor

    folder = Path(folder)
    with replacing_folder(folder) as temporary:
        state = {name: value.detach().half().cpu().contiguous() for name, value in mini.model.state_dict().items()}
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
        settings = mini.model.config
        settings.architectures, settings.dtype = [type(mini.model).__name__], "float32"
        settings.save_pretrained(temporary)
        # One level for every speaker and microphone: what the mini was trained on.
        Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(temporary)
    return folder


def _same_run(config: PretrainConfig, out: Path) -> None:
    """Keep the recipe beside the checkpoints; all but the end of a run must stay what it was."""
    free = {"steps", "log_every", "valid_every", "save_every", "shards", "teacher"}
    if (out / SETTINGS).is_file() and checkpoint.available(out):
        try:  # a field that an earlier version did not write has had its default
            before = PretrainConfig.model_validate(read_json(out / SETTINGS, "recipe of the run")).model_dump(
                mode="json"
            )
        except ValidationError as error:
            raise UserError(f"{out / SETTINGS} is no recipe of this version: choose another --out.") from error
        now = config.model_dump(mode="json")
        changed = [name for name in now if name not in free and now[name] != before.get(name)]
        if changed:
            raise UserError(
                f"{out} holds a run with another '{changed[0]}': restore the recipe, or choose another --out."
            )
    write_json(out / SETTINGS, config.model_dump(mode="json"))
