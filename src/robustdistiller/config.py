"""The recipe: every choice of a distillation run, as frozen, validated values with one name from file to code.

A recipe file is YAML with the sections below; each field that it leaves out keeps the default written here. Nothing in a
recipe is evaluated. ``--set section.field=value`` on the command line overrides a field, with the same validation.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .errors import UserError
from .files import parse_yaml, read_mapping, write_text
from .schema import Section, validated


def _no_switch(value: Any) -> Any:
    """`yes` and `true` of YAML are no numbers, though Python takes them for 1."""
    if isinstance(value, bool):
        raise ValueError(f"it must be a number, not {str(value).lower()}")
    return value


def _rising(limits: tuple[Any, Any]) -> tuple[Any, Any]:
    if limits[0] > limits[1]:
        raise ValueError("it must be [lowest, highest]")
    return limits


# Bounds that keep every value computable: what lies beyond is a slip of the pen, and would end in a crash or without an end.
Number = Annotated[float, BeforeValidator(_no_switch), Field(ge=-1e9, le=1e9)]
Whole = Annotated[int, BeforeValidator(_no_switch), Field(ge=0, le=10**12)]
Probability = Annotated[Number, Field(ge=0, le=1)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]
Few = Annotated[Count, Field(le=64)]  # noises, voices, crops
Depth = Annotated[Count, Field(le=256)]  # layers
Width = Annotated[Count, Field(le=65536)]  # units, channels, frames under a kernel
Seed = Annotated[Whole, Field(le=2**63 - 1)]
Beta = Annotated[Number, Field(ge=0, lt=1)]
Seconds = Annotated[Number, Field(ge=0.1, le=60)]  # of reverberation, of a crop
Decibels = Annotated[Number, Field(ge=-200, le=200)]
Hertz = Annotated[Number, Field(ge=1, le=1e5)]
Percent = Annotated[Number, Field(gt=0, le=50)]
Rate = Annotated[Positive, Field(le=1e3)]  # of learning
Decay = Annotated[NonNegative, Field(le=1e3)]  # of weights
Bound = TypeVar("Bound")
Range = Annotated[tuple[Bound, Bound], AfterValidator(_rising)]  # lowest and highest
Milliseconds = Annotated[Whole, Field(le=60_000, multiple_of=20)]  # whole frames


class TeacherConfig(Section):
    """The frozen model whose hidden layers are the targets."""

    model: str | None = None  # a hub name such as facebook/hubert-base-ls960, or a folder in the same layout
    layers: tuple[Depth, ...] | None = None  # 1-based; None: the paper's 4, 8, 12 scaled to the teacher's depth
    # of its forward pass; auto: bf16 where the processor or GPU has it
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # "layer" removes scale and mean of every frame of a target, which pre-norm teachers (large models, Whisper) need
    # because a few of their dimensions are a hundred times larger than the rest; "auto" does so for exactly those.
    target_norm: Literal["auto", "none", "layer"] = "auto"
    # A folder that keeps the targets in half precision for later epochs and other students; needs data.fixed_crops. The
    # teacher works but once for each crop: 230 kB a second of speech at three layers of 768.
    cache: str | None = None
    cache_gb: Positive = 100.0  # of disk at most, over everything in that folder


class StreamingConfig(Section):
    """A student that also streams: chunk and look-ahead are drawn for every batch (docs/streaming.md)."""

    chunk_ms: Annotated[tuple[Annotated[Milliseconds, Field(ge=20)], ...], Field(min_length=1)] = (80, 160, 320, 640)
    look_ahead_ms: Annotated[tuple[Milliseconds, ...], Field(min_length=1)] = (0, 80, 160, 320)
    left_ms: Milliseconds = 1920  # how far attention reaches back before the chunk, in training and on a stream
    whole: Probability = 0.25  # of batches processed as whole utterances; 1 is the offline twin, of the same shape


class StudentConfig(Section):
    """The small encoder that is trained; None means "like the model that it is initialised from"."""

    layers: Depth = 2  # Transformer layers
    # Which layers of that model the student's start from, such as [3, 6, 9, 12] for four; None: its first ones.
    from_layers: tuple[Depth, ...] | None = None
    # What predicts a target: "last", the last layer for all of them (DistilHuBERT), or "layers", for each the student's layer
    # at the depth that the target has in its teacher.
    predict_from: Literal["last", "layers"] = "last"
    hidden_size: Width | None = None  # of the Transformer
    feed_forward: Width | None = None  # units of the feed-forward parts
    heads: Width | None = None  # of attention
    conv_channels: Width | tuple[Width, ...] | None = None  # one width for all seven convolutions, or seven of them
    position_kernel: Width | None = None  # frames under the position convolution: fewer keep the middle of the source's
    projection_norm: bool | None = None  # LayerNorm before the projection; the official student has none (false)
    # "teacher", "random" (the sizes are then the teacher's), or another model: a hub name, a folder, a shipped one. So an
    # existing student can be made robust, or a student of Whisper can start from a HuBERT.
    init: str = "teacher"
    architecture: Literal["auto", "hubert", "wavlm"] = "auto"  # "auto": wavlm for a WavLM teacher, else hubert
    normalize: bool | None = None  # zero-mean, unit-variance input; None: as the preprocessor config says
    dropout: Probability = 0.1  # of the Transformer
    feature_grad_mult: NonNegative = 0.1  # gradient scale of the convolutions; 1 when they start from random weights
    streaming: StreamingConfig | None = None  # None: offline only

    @model_validator(mode="after")
    def _check(self) -> StudentConfig:
        chosen = self.from_layers
        if chosen is not None and (len(chosen) != self.layers or list(chosen) != sorted(set(chosen))):
            raise ValueError(f"from_layers must name {self.layers} layers in rising order, one for each of layers")
        return self


class DataConfig(Section):
    """Where speech, noise and rooms come from, and how they are cut and batched."""

    speech: tuple[str, ...] = ()  # sources, as of --speech
    noise: tuple[str, ...] = ()  # sources, as of --noise
    rooms: tuple[str, ...] = ()  # sources, as of --rooms
    valid_fraction: Probability = 0.05  # of speakers, noise recordings and rooms, where manifests name no split
    valid_seconds: Positive = 300.0  # at most so much held-out speech is used for validation
    min_seconds: Positive = 0.5  # shorter recordings are left out
    crop_seconds: Positive = 15.625  # the official 250 000 samples
    batch_seconds: Positive = 96.0  # audio of a step, of all processes together, padding included
    microbatch_seconds: Positive = 96.0  # at most so much goes through the network of a process at once
    # a batch is cut to its shortest crop, which loses at most this
    max_trim: Annotated[Number, Field(ge=0, le=0.5)] = 0.05
    # 0: crops of long recordings are drawn anew in every epoch; n: a recording has at most n crops, and always the same.
    fixed_crops: Annotated[Whole, Field(le=10**6)] = 0
    # Crops are cut to a multiple of so many frames. 8 leaves a hundred lengths at most, where a GPU prepares for every one that
    # is new (0.2 s of a step at base size); 1 loses nothing.
    frame_multiple: Few = 1
    workers: Annotated[Whole, Field(le=64)] = 2  # processes that read and cut, for each process of the training
    noise_cache_mb: Positive = 512.0  # decoded noise kept in memory by each process
    window_mb: Positive = 1024.0  # speech in shards (docs/scaling.md): of shards that each microbatch is mixed from
    spool: str | None = None  # the folder for copies of three windows; None: the system's folder for temporary files


class NoiseMix(Section):
    """Relative weights of the kinds of noise; recorded noise needs --noise, babble uses the speech itself."""

    recorded: NonNegative = 0.7  # of --noise
    white: NonNegative = 0.3  # Gaussian, flat
    pink: NonNegative = 0.0  # Gaussian, -3 dB an octave
    brown: NonNegative = 0.0  # Gaussian, -6 dB an octave
    babble: NonNegative = 0.0  # other speakers of the speech
    hum: NonNegative = 0.0  # these seven are synthesised, see synthetic/noises.py
    engine: NonNegative = 0.0  # a motor
    rain: NonNegative = 0.0  # hiss and drops
    wind: NonNegative = 0.0  # gusts with a whistle
    clicks: NonNegative = 0.0  # keys, latches, crackles
    alarm: NonNegative = 0.0  # beeps or a siren
    music: NonNegative = 0.0  # chords, bass, melody, drums


class EffectsConfig(Section):
    """Beyond the paper, all off by default: the probability of each device effect and its range."""

    gain: Probability = 0.0  # probability of another level
    gain_db: Range[Decibels] = (-12.0, 6.0)  # lowest and highest, dB
    clipping: Probability = 0.0  # probability of clipping
    clipping_percent: Range[Percent] = (0.1, 2.0)  # of samples pushed past the limit
    band_limit: Probability = 0.0  # telephone or small-microphone band pass
    low_hz: Range[Hertz] = (50.0, 400.0)  # lower edge of the band, lowest and highest, Hz
    high_hz: Range[Hertz] = (3000.0, 7000.0)  # upper edge of the band, lowest and highest, Hz
    codec: Probability = 0.0  # 8-bit mu-law (G.711)


class CurriculumConfig(Section):
    """From easy to hard (arXiv 2211.06562): over `steps`, the lowest SNR falls and reverberation becomes likelier."""

    steps: Whole = 0  # 0: no curriculum
    start_snr_db: Decibels = 20.0  # the lowest SNR at the beginning, dB


class EnvironmentConfig(Section):
    """The student's input: the share of the four conditions and how each is drawn (method: paper section 3.1).

    Example:
        >>> from robustdistiller import EnvironmentConfig
        >>> EnvironmentConfig(clean=0, reverb=0, both=0, snr_db=(5, 15)).uses_rooms
        False
    """

    clean: NonNegative = 0.25  # share of utterances that stay clean
    noise: NonNegative = 0.25  # share with noise alone
    reverb: NonNegative = 0.25  # share in a room alone
    both: NonNegative = 0.25  # share with noise in a room
    snr_db: Range[Decibels] = (0.0, 20.0)  # lowest and highest, dB, against the reverberant speech
    snr_step_db: NonNegative = 1.0  # the paper draws whole decibels; 0 draws any value
    noises: Range[Few] = (1, 1)  # how many noises sound at once, lowest and highest
    noise_kinds: NoiseMix = NoiseMix()
    noise_in_room: bool = False  # let the noise reach the microphone through a response of the same room
    babble_voices: Range[Few] = (3, 7)  # talkers in a babble, fewest and most
    simulated_rooms: Annotated[Whole, Field(le=10**6)] = 64  # built when there are no recorded ones, or beside them
    simulated_share: Probability = 0.0  # probability of a simulated room where recorded ones exist
    t60_seconds: Range[Seconds] = (0.2, 1.0)  # of simulated rooms, shortest and longest
    effects: EffectsConfig = EffectsConfig()
    curriculum: CurriculumConfig = CurriculumConfig()

    @model_validator(mode="after")
    def _check(self) -> EnvironmentConfig:
        if not self.clean + self.noise + self.reverb + self.both > 0:
            raise ValueError("one of clean, noise, reverb and both must be above 0")
        if self.noise + self.both > 0 and not sum(self.noise_kinds.model_dump().values()) > 0:
            raise ValueError("one of noise_kinds must be above 0")
        return self

    @property
    def uses_noise(self) -> bool:
        return self.noise + self.both > 0

    @property
    def uses_rooms(self) -> bool:
        return self.reverb + self.both > 0


class EnhancementConfig(Section):
    """The second task: reconstruct the clean spectrogram from the contaminated input (paper section 3.2)."""

    enabled: bool = True  # false: no second task, no head
    # The student state that feeds the head. The last layer is that of the paper's figure; tapped there, the task asks it to
    # describe the noise that distillation asks it to forget, which cost all of the gain where it was measured.
    tap: Literal["last", "cnn"] | Depth = "cnn"
    weight: NonNegative = 2.0  # λ, of the mean distance of magnitudes; the paper's
    hidden: Width = 256  # per direction
    layers: Depth = 3  # of the bidirectional LSTM
    dropout: Probability = 0.1  # between its layers
    # Frames a second at which its LSTM runs: 100 is the official code's, 50 has the same input in half the time.
    frame_rate: Literal[50, 100] = 50
    # In training the LSTM runs over windows of about so many seconds, side by side, which a GPU does in a fraction of the time;
    # 0: over whole utterances, as in the paper. A trained head runs over whole utterances in any case.
    window_seconds: NonNegative = 1.28

    @model_validator(mode="before")
    @classmethod
    def _of_the_version_before(cls, values: Any) -> Any:
        """The loss that is left, and its weight, where they are named as the defaults that they were."""
        if isinstance(values, dict) and values.get("loss", "l1") == "l1":
            return {k: v for k, v in values.items() if k != "loss" and (k, v) != ("weight", None)}
        return values


class ObjectivesConfig(Section):
    """The weights of the loss's terms: those of `objectives.distillation`, and λ of the enhancement."""

    l1: NonNegative = 1.0  # distance of prediction and target
    cosine: NonNegative = 1.0  # -log sigmoid of their cosine
    mse: NonNegative = 0.0  # with teacher.layers=[12] the loss of DeWavLM
    correlation: NonNegative = 0.0  # correlation-metric distillation (arXiv 2312.12153)
    vicreg: NonNegative = 0.0  # variance and covariance of the predictions (arXiv 2105.04906)
    enhancement: EnhancementConfig = EnhancementConfig()

    @model_validator(mode="after")
    def _check(self) -> ObjectivesConfig:
        if not self.l1 + self.cosine + self.mse + self.correlation > 0:
            raise ValueError("one of l1, cosine, mse and correlation must be above 0")
        return self


class TrainingConfig(Section):
    """The optimisation: AdamW, warm-up, linear decay, clipping (paper section 4.2)."""

    steps: Count = 200_000  # optimiser steps
    learning_rate: Rate = 2e-4  # at the end of the warm-up; falls linearly to 0
    betas: tuple[Beta, Beta] = (0.9, 0.98)  # of AdamW
    eps: Annotated[Positive, Field(ge=1e-12, le=1)] = 1e-6  # smaller ones vanish in single precision
    weight_decay: Decay = 1e-6  # on matrices only
    warmup: Probability = 0.07  # fraction of the steps
    clip: Positive = 15.0  # gradient norm
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the processor or GPU has it
    # Whether torch.compile fuses the Transformer layers of teacher and student, which takes its time at the start and needs a
    # C++ compiler (on a GPU Triton); layers that cannot be compiled run as they are. Losses change by rounding.
    compile: bool = False
    seed: Seed = 0  # of everything drawn
    log_every: Count = 50  # steps
    valid_every: Count = 2000  # steps; each validation may choose the student
    save_every: Count = 1000  # steps between checkpoints
    keep: Count = 2  # newest checkpoints that are kept
    timeout: Positive = 1800.0  # seconds that one of several processes waits for the others before it ends


class Recipe(Section):
    """A whole distillation run (docs/reference/recipe.md).

    Example:
        >>> from robustdistiller import Recipe
        >>> Recipe(training={"steps": 100}).to_dict()["training"]["steps"]
        100
    """

    name: str = "unnamed"  # shown in logs and on the card
    notes: str = ""  # for readers
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    data: DataConfig = DataConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    objectives: ObjectivesConfig = ObjectivesConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="before")
    @classmethod
    def _of_the_version_before(cls, values: Any) -> Any:
        """One microbatch a step is what it was; several were counted in another way."""
        training = values.get("training") if isinstance(values, dict) else None
        if not isinstance(training, dict) or "accumulate" not in training:
            return values
        if training["accumulate"] != 1:
            raise ValueError(
                "training.accumulate is of the version before: data.batch_seconds is now the batch of all processes together, "
                "and data.microbatch_seconds what goes through a network at once; set those and leave it out"
            )
        data = values.get("data") if isinstance(values.get("data"), dict) else {}
        whole = {**data, **({"microbatch_seconds": data["batch_seconds"]} if "batch_seconds" in data else {})}
        return {**values, "data": whole, "training": {k: v for k, v in training.items() if k != "accumulate"}}

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.teacher.cache is not None and not self.data.fixed_crops:
            raise ValueError("for teacher.cache set data.fixed_crops to 1 or more, or leave the cache out")
        return self

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe as plain JSON values."""
        return self.model_dump(mode="json")

    def save(self, path: str | Path) -> None:
        """Write the resolved recipe as YAML, atomically."""
        write_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))


def load_recipe(path: str | Path | None = None, overrides: Iterable[str] = (), **fields: Any) -> Recipe:
    """Read a recipe, and change some of its fields.

    Args:
        path: A YAML file or the name of a shipped recipe; None for the defaults.
        overrides: ``section.field=value`` texts, as of ``--set``.
        fields: The same as keywords, with ``__`` for the dot; they are applied last.

    Returns:
        The recipe, checked and immutable.

    Raises:
        UserError: A field is unknown or has a wrong value; it names the field and the closest valid one.

    Example:
        >>> from robustdistiller import load_recipe
        >>> recipe = load_recipe("robust-hubert-base", ["training.steps=1000"], data__speech=["LibriSpeech/"])
        >>> recipe.training.steps, recipe.data.speech
        (1000, ('LibriSpeech/',))
    """
    values = _read(path) if path is not None else {}
    for item in overrides:
        name, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"--set {item!r} has no value: write it as section.field=value.")
        try:
            value = parse_yaml(text)
        except ValueError as error:
            raise UserError(f"The value of --set {item!r} cannot be read as YAML: put it in quotes.") from error
        _assign(values, name.strip(), value)
    for name, value in fields.items():
        if value is not None:
            _assign(values, name.replace("__", "."), value)
    return validated(Recipe, values, str(path) if path else "the recipe")


def _read(path: str | Path) -> dict[str, Any]:
    from .presets import find_shipped

    return read_mapping(find_shipped(path, "recipes"), "recipe")


def _assign(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, field = name.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"'{name}' names a field inside '{section}', which holds a plain value: check the name.")
        values = inner
    values[field] = value
