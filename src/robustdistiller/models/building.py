"""A new student: the network that a recipe's sizes make, and its first weights.

What is copied and what is fitted is said in `initialise` and `pruning`; here it is put together.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EnhancementConfig, StudentConfig
from ..errors import UserError
from . import pruning
from .encoder import ConvEncoder, SpeechEncoder
from .heads import EnhancementHead, PredictionHeads
from .hub import load_encoder
from .initialise import Initialisation, copyable_state, initialise
from .layer_norm import fit_layer_norm
from .student import Student
from .teacher import Teacher

logger = logging.getLogger(__name__)

NO_MASKING: dict[str, Any] = {
    "feat_proj_dropout": 0.0, "layerdrop": 0.0, "apply_spec_augment": False, "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
}  # fmt: skip
"""SpecAugment stays off, and so does its embedding, which would be a parameter without a gradient."""


def build_student(
    teacher: Teacher,
    config: StudentConfig,
    enhancement: EnhancementConfig,
    seed: int = 0,
    speech: Iterable[Tensor] = (),
) -> tuple[Student, Initialisation]:
    """A new student for `teacher`, initialised from it (or from the model that `config.init` names) as far as shapes allow.

    speech: clips (T,) of minutes in all, read only where something is narrower than in that model and is to be fitted
    What cannot be copied is drawn from `seed`. Raises `UserError` for sizes that cannot be built.
    """
    source = teacher.encoder if config.init in ("teacher", "random") else load_encoder(config.init)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build_model(source, config)
        normalize = source.normalize and config.streaming is None if config.normalize is None else config.normalize
        encoder = ConvEncoder(model, normalize, config.feature_grad_mult)
        sources = None
        if config.predict_from == "layers":
            sources = [math.ceil(layer * config.layers / teacher.num_layers) for layer in teacher.layers]
        heads = PredictionHeads(encoder.hidden_size, teacher.hidden_size, len(teacher.layers), sources)
        enhancer = None
        if enhancement.enabled:
            enhancer = EnhancementHead(
                encoder.hidden_size, enhancement.hidden, enhancement.layers, enhancement.dropout,
                enhancement.frame_rate, enhancement.window_seconds,
            )  # fmt: skip
    origins = config.from_layers or tuple(range(1, config.layers + 1))
    if config.from_layers and origins[-1] > source.num_layers:
        raise UserError(f"student.from_layers has {origins[-1]}, but {config.init} only {source.num_layers} layers.")
    weights = {} if config.init == "random" else copyable_state(source, origins)
    report = initialise(model, weights)
    # A front end normalised over time must be fitted to one that is not.
    norm = getattr(source.model.config, "feat_extract_norm", "layer")
    streams = config.streaming is not None and config.init != "random" and norm == "group"
    if (report.kept or streams) and isinstance(source, ConvEncoder):
        device = next(source.parameters()).device
        if clips := [clip.to(device) for clip in speech]:
            kept, moments = pruning.plan_pruning(encoder, source, clips, origins)
            report = initialise(model, weights, kept)
            encoder.to(device)
            pruning.fit(encoder, source, replace(kept, channels=[]) if streams else kept, moments, clips, origins)
            configs: list[Any] = [model.config, source.model.config]  # transformers types them as parts of a module
            if streams and (kept.channels or len({tuple(config.conv_dim) for config in configs}) == 1):
                fit_layer_norm(encoder, source, clips, kept.channels)
                report.mark_fitted("feature_")
            encoder.cpu()
    if report.random and isinstance(source, ConvEncoder) and config.init != "random":
        logger.warning(
            "%d of the student's %d tensors start at random%s.",
            len(report.random), len(model.state_dict()), _mismatch(model.config, source.model.config),
        )  # fmt: skip
    return Student(encoder, heads, enhancer, teacher.layers, enhancement.tap, streaming=config.streaming), report


def _mismatch(mine: Any, theirs: Any) -> str:
    """Why a student cannot start from a source, and what to set for it to, as the end of a sentence."""
    if mine.hidden_size != theirs.hidden_size:
        return f": student.hidden_size is {mine.hidden_size}, and the source's {theirs.hidden_size}"
    if any(a > b for a, b in zip(mine.conv_dim, theirs.conv_dim, strict=True)):
        return f": set student.conv_channels to at most the source's, {list(theirs.conv_dim)}"
    return ""


def _build_model(source: SpeechEncoder, config: StudentConfig) -> nn.Module:
    from transformers import HubertConfig, HubertModel, WavLMConfig, WavLMModel

    theirs: Any = source.model.config if isinstance(source, ConvEncoder) else HubertConfig()
    hidden = config.hidden_size or source.hidden_size
    same = hidden == source.hidden_size
    heads = config.heads or (_size(source, "attention_heads") if same else max(1, hidden // 64))
    if hidden % heads:
        raise UserError(f"student.hidden_size {hidden} is no multiple of {heads} heads: correct student.heads.")
    channels = config.conv_channels if config.conv_channels is not None else tuple(theirs.conv_dim)
    channels = (channels,) * len(theirs.conv_dim) if isinstance(channels, int) else tuple(channels)
    if len(channels) != len(theirs.conv_dim):
        raise UserError(f"student.conv_channels needs one width or {len(theirs.conv_dim)}, not {len(channels)}.")
    alike = theirs.model_type == "wavlm" and config.streaming is None
    wavlm = config.architecture == "wavlm" or (config.architecture == "auto" and alike)
    # data2vec's stack of five position convolutions has no counterpart in HuBERT, which gets one of the usual size.
    kernel = theirs.num_conv_pos_embeddings if theirs.model_type != "data2vec-audio" else 128
    kernel = config.position_kernel or kernel
    fields: dict[str, Any] = dict(
        hidden_size=hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=heads,
        intermediate_size=config.feed_forward or (_size(source, "ffn_dim") if same else 4 * hidden),
        conv_dim=channels,
        conv_kernel=tuple(theirs.conv_kernel),
        conv_stride=tuple(theirs.conv_stride),
        conv_bias=theirs.conv_bias or config.streaming is not None,
        # data2vec knows no other; a stream has no statistics over time
        feat_extract_norm="layer" if config.streaming is not None else getattr(theirs, "feat_extract_norm", "layer"),
        feat_extract_activation=theirs.feat_extract_activation,
        do_stable_layer_norm=bool(getattr(theirs, "do_stable_layer_norm", False)),
        layer_norm_eps=theirs.layer_norm_eps,
        hidden_act=theirs.hidden_act,
        num_conv_pos_embeddings=kernel,
        num_conv_pos_embedding_groups=_position_groups(hidden),
        **dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout"), config.dropout),
        **NO_MASKING,
    )
    try:
        if wavlm:
            return WavLMModel(WavLMConfig(**fields))
        norm = bool(getattr(theirs, "feat_proj_layer_norm", True))
        norm = norm if config.projection_norm is None else config.projection_norm
        return HubertModel(HubertConfig(**fields, feat_proj_layer_norm=norm))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"This student cannot be built ({error}): check the recipe's student section.") from error


def _size(source: SpeechEncoder, name: str) -> int:
    config: Any = source.model.config
    others = {"attention_heads": "num_attention_heads", "ffn_dim": "intermediate_size"}[name]
    return int(getattr(config, f"encoder_{name}", None) or getattr(config, others))  # the first is Whisper's


def _position_groups(hidden: int) -> int:
    """Groups of the position convolution: 16 as in the paper, fewer where a group would have under 16 channels."""
    return next(groups for groups in range(min(16, max(1, hidden // 16)), 0, -1) if hidden % groups == 0)
