"""Foreign checkpoints come in here: a model's name or folder → an encoder, waveforms in and hidden states out."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import UserError, explained
from ..files import read_json
from .config_limits import check_finite, check_values
from .encoder import ConvEncoder, SpeechEncoder
from .repository import CONFIGS, FORMATS, ModelFiles, locate
from .squeezed import SqueezedEncoder
from .w2v_bert import W2vBertEncoder
from .weights import Weights, check_agreement, fill, match, open_weights
from .whisper import WhisperEncoder

logger = logging.getLogger(__name__)

SUPPORTED = (
    "hubert", "wavlm", "wav2vec2", "wav2vec2-conformer", "wav2vec2-bert", "data2vec-audio", "unispeech", "unispeech-sat",
    "sew", "sew-d", "whisper",
)  # fmt: skip
FROM_LOG_MEL = ("whisper", "wav2vec2-bert")


def load_encoder(name: str | os.PathLike[str] | ModelFiles) -> SpeechEncoder:
    """Load any supported encoder in float32, with its input normalisation and without the heads or adapters beside it.

    Args:
        name: see `repository.locate`; or what it gave.

    Raises:
        UserError: a name or folder that is no checkpoint, an unsupported kind of model, weights that do not fit its config.
    """
    files = name if isinstance(name, ModelFiles) else locate(name)
    config = _read_config(files)
    extractor = _read_extractor(files)
    kind = config.model_type
    if kind in FROM_LOG_MEL and extractor is None:
        raise UserError(f"{files.name} has no preprocessor_config.json, which its input needs: add its hub page's.")
    if extractor is None:
        logger.warning("%s has no preprocessor_config.json: its input is taken as it is, unnormalised", files.name)
    elif extractor.sampling_rate != 16_000:
        raise UserError(f"{files.name} expects {extractor.sampling_rate} Hz; only 16 000 Hz can be distilled.")
    normalize = getattr(extractor, "do_normalize", False)
    if not isinstance(normalize, bool):
        raise UserError(
            f"{files.name} has do_normalize: {normalize!r:.40} in its extractor's config: write true or false."
        )
    model = _build(config, _open(files), files.name)
    with _one_sentence(files.name):
        if kind in FROM_LOG_MEL:
            encoder: SpeechEncoder = (WhisperEncoder if kind == "whisper" else W2vBertEncoder)(model, extractor)
        else:
            made = SqueezedEncoder if kind in ("sew", "sew-d") else ConvEncoder
            encoder = made(model, normalize=normalize)
    encoder.source = files.source
    return encoder


def _read_config(files: ModelFiles) -> Any:
    from transformers import AutoConfig

    values = read_json(files.folder / "config.json", "model config")
    check_values(values, f"{files.folder / 'config.json'}")
    if "quantization_config" in values:
        raise UserError(f"The weights of {files.name} are quantised: give the model in 16 or 32 bits.")
    with quiet_transformers(), _one_sentence(files.name):
        config: Any = AutoConfig.from_pretrained(files.folder, trust_remote_code=False, local_files_only=True)
    if config.model_type not in SUPPORTED:
        known = ", ".join(SUPPORTED)
        raise UserError(f"{files.name} is a '{config.model_type}' model, not one of those known here: {known}.")
    # A config may name attention kernels, which would be fetched and run.
    config._attn_implementation = None
    if config.model_type != "whisper":
        config.apply_spec_augment = False
        config.layerdrop = 0.0
        # An adapter lowers the frame rate, and what stands before it is there for it.
        config.add_adapter = config.use_intermediate_ffn_before_adapter = False
    return config


def _read_extractor(files: ModelFiles) -> Any:
    from transformers import AutoFeatureExtractor

    found = [files.folder / name for name in CONFIGS if (files.folder / name).is_file()]
    for file in found:
        check_values(read_json(file, "preprocessor config"), str(file))
    if not found:
        return None
    with quiet_transformers(), _one_sentence(files.name):
        options: Any = dict(trust_remote_code=False, local_files_only=True)
        extractor: Any = AutoFeatureExtractor.from_pretrained(files.folder, **options)
        check_values({"feature_size": extractor.feature_size, "sampling_rate": extractor.sampling_rate}, files.name)
    return extractor


def _open(files: ModelFiles) -> Weights:
    weights = open_weights(files.folder / name for name in files.weights)
    other = files.folder / FORMATS[1]
    if files.weights[0] != FORMATS[1] and other.is_file():
        try:
            pickled = open_weights([other])
        except UserError as error:
            logger.warning("%s is passed over beside %s: %s", FORMATS[1], files.weights[0], error)
        else:
            check_agreement(weights, pickled, str(files.folder))
    return weights


def _build(config: Any, weights: Weights, name: str) -> nn.Module:
    """The model of a config with these weights in float32, whatever their precision; memory is taken when they fit."""
    from transformers import AutoModel
    from transformers.initialization import no_init_weights

    def build() -> Any:
        if config.model_type == "whisper":
            from transformers.models.whisper.modeling_whisper import WhisperEncoder as WhisperModel

            return WhisperModel(config)
        return AutoModel.from_config(config, dtype=torch.float32)

    with quiet_transformers(), _one_sentence(name):
        with torch.device("meta"):
            described = build()
        found = match(described, weights, name)
        with no_init_weights():
            model = build()
        fill(model, found, name)
    check_finite(model, name)
    return model.eval()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the loading bar and notes of `transformers`; our own plan line says what was loaded."""
    from transformers.utils import logging as hub_logging

    level, bars = hub_logging.get_verbosity(), hub_logging.is_progress_bar_enabled()
    hub_logging.set_verbosity_error()
    hub_logging.disable_progress_bar()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        if bars:
            hub_logging.enable_progress_bar()


def _one_sentence(name: str) -> contextlib.AbstractContextManager[None]:
    advice = "check its config.json and preprocessor_config.json, or copy or download them again."
    return explained(f"Cannot load the model {name}", advice)
