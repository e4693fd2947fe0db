"""Foreign checkpoints come in here: a hub name or a folder in the hub's layout → a `SpeechEncoder` or `WhisperEncoder`."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..assets import located
from ..errors import UserError
from ..files import read_json
from .config_limits import check_finite, check_folder, check_values, check_weights
from .encoder import SpeechEncoder
from .whisper import WhisperEncoder

logger = logging.getLogger(__name__)

SUPPORTED = ("hubert", "wavlm", "wav2vec2", "data2vec-audio", "unispeech-sat", "whisper")


def load_encoder(name: str | os.PathLike[str]) -> SpeechEncoder | WhisperEncoder:
    """Load any supported encoder in float32 with its input normalisation; weights only from safetensors.

    Raises `UserError` for a folder that is no checkpoint, an unsupported model type, or a hub that cannot be reached.
    """
    name = located(name)
    local = os.path.isdir(name)
    if local and not (Path(name) / "config.json").is_file():
        raise UserError(f"The folder {name} holds no config.json: give a model folder in the Hugging Face layout.")
    if not local and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(
            f"There is no model folder {name}: check the path, or give a hub name such as facebook/hubert-base-ls960."
        )
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

    if local:
        check_folder(Path(name))
    with quiet_transformers(), _one_sentence(name):
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False)
        # A config may name attention kernels, which would be fetched and run.
        config._attn_implementation = None
    kind = config.model_type
    if kind not in SUPPORTED:
        raise UserError(
            f"{name} is a '{kind}' model, which is no speech encoder known here: use one of {', '.join(SUPPORTED)}."
        )
    if kind != "whisper":
        config.apply_spec_augment = False
        config.layerdrop = 0.0
        config.add_adapter = False
    with quiet_transformers(), _one_sentence(name):
        if local:
            check_weights(config, Path(name))
        # The checkpoint may be half precision; targets are computed from float32 masters, see autocast in `Teacher`.
        model, report = AutoModel.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True, use_safetensors=True,
            trust_remote_code=False,
        )  # fmt: skip
        has_extractor = _has_preprocessor(name, local)
        extractor: Any = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=False) if has_extractor else None
        if extractor is not None:
            check_values({"feature_size": extractor.feature_size, "sampling_rate": extractor.sampling_rate}, name)
    missing = [
        key for key in report["missing_keys"] if not key.startswith("decoder.") and "masked_spec_embed" not in key
    ]
    if missing:
        raise UserError(
            f"The weights of {name} lack {len(missing)} tensors of its config ({missing[0]}, …): download it again."
        )
    check_finite(model, name)
    if kind == "whisper":
        if extractor is None:
            raise UserError(
                f"{name} has no preprocessor_config.json, which Whisper's log-mel needs: add the file of its hub page."
            )
        with _one_sentence(name):
            return WhisperEncoder(model, extractor)
    if extractor is None:
        logger.warning("%s has no preprocessor_config.json: its input is taken as it is, without normalisation", name)
    elif extractor.sampling_rate != 16_000:
        raise UserError(f"{name} expects {extractor.sampling_rate} Hz; only encoders for 16 000 Hz can be distilled.")
    normalize = getattr(extractor, "do_normalize", False)
    if not isinstance(normalize, bool):
        raise UserError(
            f"The preprocessor_config.json of {name} says do_normalize: {normalize!r:.40}: write true or false."
        )
    with _one_sentence(name):
        return SpeechEncoder(model, normalize)


def _has_preprocessor(name: str, local: bool) -> bool:
    if local:
        file = Path(name) / "preprocessor_config.json"
        if file.is_file():
            read_json(file, "preprocessor config")
            return True
        return False
    from transformers.utils import cached_file

    return cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False) is not None


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


@contextlib.contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the loaders raise a dozen types: OSError, ValueError, SafetensorError, KeyError, …
        first = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"Cannot load the model {name} ({first[:160]}): check the name or the folder (config.json, model.safetensors, "
            "preprocessor_config.json), or the way to the hub."
        ) from error
