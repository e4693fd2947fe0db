"""Pretraining of the mini teacher: a small encoder learns a larger one, layer by layer, on clean speech alone.

What is learned (docs/mini-teacher.md says why): linear heads on some depths of the mini predict some depths of a frozen
encoder, each dimension standardised. Both get the same crop at the same level; frames are matched by time. Every crop is
a pure function of (seed, step, row), so a run can be stopped anywhere and goes on to the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ..audio.io import SAMPLE_RATE
from ..config import Count, Decay, NonNegative, Positive, Probability, Rate, Seed, TrainingConfig
from ..distributed import Distributed
from ..errors import UserError
from ..files import exclusive, read_json, read_mapping, replacing_folder, write_json
from ..models.frames import GRID
from ..models.precision import autocast, pick_precision
from ..models.repository import locate
from ..models.teacher import Teacher, load_teacher
from ..presets import shipped_folder
from ..randomness import integer
from ..schema import Section, validated
from . import checkpoint
from .checkpoint import TrainingProgress
from .mini import Mini, MiniConfig, loss_terms
from .observer import Observer
from .pretrain_speech import CropConfig, Pool, PoolConfig, draw, draw_mask, load_pools
from .trainer import StepLoss, Trainer

TEACHER_RMS = 0.06  # the level at which the teacher gets every crop: about -24 dBFS, usual for speech
BLOCK_SECONDS = 24.0  # of speech at once, where nothing is trained
SETTINGS = "pretrain.json"


class PretrainConfig(Section):
    """A pretraining run; the defaults are those of the shipped mini teacher."""

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
    learning_rate: Rate = 1e-3
    warmup_steps: Count = 300
    decay: Probability = 0.3  # share of the steps over which the learning rate falls to zero at the end
    weight_decay: Decay = 0.01
    clip: Positive = 1.0
    seed: Seed = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: Count = 25
    valid_every: Count = 250
    save_every: Count = 100

    @property
    def training(self) -> TrainingConfig:
        """The settings of the trainer."""
        return TrainingConfig(
            steps=self.steps, learning_rate=self.learning_rate, weight_decay=self.weight_decay, clip=self.clip,
            precision=self.precision, seed=self.seed, log_every=self.log_every, valid_every=self.valid_every,
            save_every=self.save_every,
        )  # fmt: skip


def load_pretrain_config(path: str | Path, architecture: str | None = None, **fields: Any) -> PretrainConfig:
    """Read a recipe by path or by the name of a shipped one (mini-hubert).

    `architecture` (of the mini) and `fields`, where they are not None, replace its values.

    Raises `UserError` for an unreadable file, an unknown field (with the closest known one) or a wrong value.
    """
    file = Path(path)
    if not file.is_file():
        file = shipped_folder("recipes") / "pretrain" / f"{file.stem}.yaml"
    values = read_mapping(file, "recipe")
    values |= {name: value for name, value in fields.items() if value is not None}
    if architecture is not None:
        values["model"] = {**(values.get("model") or {}), "architecture": architecture}
    return validated(PretrainConfig, values, f"the recipe {path}")


def plateau_learning_rate(config: PretrainConfig, step: int) -> float:
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
    device: str | torch.device | None = None,
    observer: Observer | None = None,
    stop_after: int | None = None,
) -> Path:
    """Train the mini of `config` into the folder `out`, or go on there, and return the folder of the exported model.

    Args:
        config: every choice of the run.
        out: the run folder.
        roots: folders under which the manifests of ``config.speech`` are looked for.
        device: where it is computed; the GPU of this process, or the processor, by default.
        observer: told about every step.
        stop_after: end at that step without exporting; the same call without it goes on.

    Raises:
        UserError: `out` holds a run with another recipe, or what is named is not there.
    """
    out, watch = Path(out), observer or Observer()
    context = Distributed.launched()
    _check_same_run(config, out)
    locate(config.teacher)  # before hours of speech are read
    pools = load_pools(config.speech, roots, progress=lambda done, total: watch.work("reading speech", done, total))
    valid_pools = load_pools(config.speech, roots, "valid")
    teacher = load_teacher(config.teacher, device=device or context.device)
    mini = train(config, pools, valid_pools, teacher, out, context=context, observer=watch, stop_after=stop_after)
    if stop_after and stop_after < config.steps:
        return out
    return export(mini, out / "model") if context.main else out / "model"


def train(
    config: PretrainConfig,
    pools: Sequence[Pool],
    valid_pools: Sequence[Pool],
    teacher: Teacher,
    out: Path,
    *,
    context: Distributed | None = None,
    observer: Observer | None = None,
    stop_after: int | None = None,
) -> Mini:
    """Crops → gradients → weights, with checkpoints and metrics in `out`, by the `Trainer` of a `Pretraining`."""
    context, watch = context or Distributed(), observer or Observer()
    with exclusive(out) if context.main else context.reporting_lost(lambda: "run the same command again"):
        context.wait()
        write_json(out / SETTINGS, config.model_dump(mode="json"))
        found = checkpoint.available(out)
        task = Pretraining(config, pools, valid_pools, teacher, context)
        trainer = Trainer(task, config.training, out, context, watch)
        if found:
            trainer.resume(found[-1])
        else:
            task.measure()
        watch.plan(task.plan(), trainer.progress.step, config.steps)
        trainer.train(stop_after)
    return task.mini


@dataclass
class Crops:
    """A microbatch: crops of unit variance (B, T), the frames to hide (B, F), and the rows of the global batch."""

    wave: Tensor
    mask: Tensor | None
    rows: int


class Pretraining:
    """The task of a `Trainer`: a mini whose heads predict the standardised states of `teacher` on clean crops."""

    criterion = "loss"
    accumulate = 1

    def __init__(
        self,
        config: PretrainConfig,
        pools: Sequence[Pool],
        valid_pools: Sequence[Pool],
        teacher: Teacher,
        context: Distributed,
    ):
        self.config, self.pools, self.teacher, self.context = config, pools, teacher, context
        self.device = next(teacher.parameters()).device
        with torch.random.fork_rng(devices=[]):
            # layers have no other way to be told their initial values
            torch.manual_seed(integer(config.seed, "weights"))
            self.mini = Mini(config.model, teacher.hidden_size, max(config.crops.seconds)).to(self.device)
        self.mini.mask_vector.requires_grad_(config.mask > 0)
        self.module: nn.Module = self.mini
        self.precision = pick_precision(config.precision, self.device, self.mini)
        fewest = max(1, round(config.batch_seconds / max(config.crops.seconds)))
        if fewest < context.world:
            raise UserError(f"A batch has {fewest} crops for {context.world} processes: raise batch_seconds.")
        blocks = context.share(range(config.valid_blocks))
        self.valid = [draw(valid_pools, config.crops, BLOCK_SECONDS, config.seed, f"valid-{k}") for k in blocks]

    def measure(self) -> None:
        """Mean and scale of the targets, from crops that are not trained on."""
        config = self.config
        longest = config.crops.model_copy(update={"seconds": (max(config.crops.seconds),)})
        count = math.ceil(config.statistics_crops * max(longest.seconds) / BLOCK_SECONDS)
        crops = (draw(self.pools, longest, BLOCK_SECONDS, config.seed, f"statistics-{k}") for k in range(count))
        self.mini.measure(self.states(wave.to(self.device)) for wave in crops)

    def states(self, wave: Tensor) -> Tensor:
        """The states (B, S, F, D) of the teacher for crops (B, T) of unit variance."""
        return self.teacher.states(wave * TEACHER_RMS)[0]

    def learning_rate(self, step: int) -> float:
        return plateau_learning_rate(self.config, step)

    def batches(self, start: int) -> Iterator[Crops]:
        """The crops of this process from the step `start` on, each drawn while the one before is learned from."""
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._draw, start)
            for step in range(start, self.config.steps):
                crops, ahead = ahead.result(), reader.submit(self._draw, step + 1)
                yield crops

    def _draw(self, step: int) -> Crops:
        config = self.config
        seconds = config.warmup_batch_seconds if step < config.warmup_steps else config.batch_seconds
        wave = draw(self.pools, config.crops, seconds, config.seed, step)
        frames = int(GRID.count(torch.tensor(wave.shape[1])))
        mask = draw_mask(len(wave), frames, config.mask, config.mask_span, config.seed, step)
        mine = slice(self.context.rank, None, self.context.world)
        return Crops(wave[mine].to(self.device), None if mask is None else mask[mine].to(self.device), len(wave))

    def loss(self, model: nn.Module, batch: Crops) -> StepLoss:
        """Every crop weighs the same: the crops of a batch are equally long."""
        l1, cosine = self._terms(model, batch.wave, batch.mask)
        total = l1.mean(1) + self.config.cosine * cosine.mean(1)
        terms = {f"l1/{tap}": l1[:, k] for k, tap in enumerate(self.config.model.taps)}
        return StepLoss(total, terms, torch.full_like(total, 1 / batch.rows), batch.wave.numel() / SAMPLE_RATE)

    def _terms(self, model: nn.Module, wave: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        target = self.mini.standardise(self.states(wave))
        with autocast(self.device, self.precision):
            prediction = model(wave, mask)
        return loss_terms(prediction, target)

    def sources(self, batch: Crops) -> dict[str, Tensor]:
        return {"speech": batch.wave, "teacher's targets": self.states(batch.wave)}

    def ids(self, batch: Crops) -> list[str]:
        return [f"crop {row}" for row in range(len(batch.wave))]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss and L1 of each tap on fixed crops of speakers that are not trained on."""
        sums = torch.zeros(2 + len(self.config.model.taps), dtype=torch.float64)
        for wave in self.valid:
            l1, cosine = (terms.mean(0).double().cpu() for terms in self._terms(self.mini, wave.to(self.device), None))
            loss = l1.mean() + self.config.cosine * cosine.mean()
            sums += torch.cat([torch.ones(1), loss[None], l1])
        count, loss, *l1_means = self.context.reduce(sums).tolist()
        names = ["loss", *(f"l1/{tap}" for tap in self.config.model.taps)]
        return {name: value / count for name, value in zip(names, (loss, *l1_means), strict=True)}

    def keep(self, progress: TrainingProgress, metrics: dict[str, float]) -> None:
        """The model is exported at the end, where the learning rate has fallen to zero."""

    def is_kept(self) -> bool:
        return True

    def plan(self) -> list[str]:
        """What the run is about to do, in words."""
        config = self.config
        hours = ", ".join(f"{pool.name} {pool.hours:.2f} h" for pool in self.pools)
        return [
            f"{config.name}: {hours}; {len(self.valid)} blocks of {BLOCK_SECONDS:g} s held out",
            f"teacher {self.teacher.name} {self.teacher.num_parameters / 1e6:.1f} M -> {config.model.architecture} of "
            f"{sum(p.numel() for p in self.mini.model.parameters()) / 1e6:.2f} M",
            f"{config.steps} steps of {config.batch_seconds:g} s; {self.precision} on {self.device} x {self.context.world}",
        ]


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


def _check_same_run(config: PretrainConfig, out: Path) -> None:
    """All but the end of a run that goes on must be what it was. Raises `UserError` where it is not."""
    if not ((out / SETTINGS).is_file() and checkpoint.available(out)):
        return
    values = read_json(out / SETTINGS, "recipe of the run")
    try:  # a field that an earlier version did not write has had its default
        kept = {name: value for name, value in values.items() if name != "shards"}
        before = PretrainConfig.model_validate(kept).model_dump(mode="json")
    except (ValidationError, AttributeError) as error:
        raise UserError(f"{out / SETTINGS} is no recipe of this version: choose another --out.") from error
    free = {"steps", "log_every", "valid_every", "save_every", "teacher"}
    now = config.model_dump(mode="json")
    changed = [name for name in now if name not in free and now[name] != before.get(name)]
    if changed:
        raise UserError(f"{out} holds a run with another '{changed[0]}': restore the recipe, or choose another --out.")
