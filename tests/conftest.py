"""What every test shares: one thread, tiny models in the hub's layout, and speech-like sound made on the spot."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from robustdistiller.process import quiet_threads

quiet_threads()

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)  # --hypothesis-profile=default draws new examples
settings.load_profile("repeatable")
torch.set_num_threads(1)
torch.backends.cudnn.allow_tf32 = False  # on a GPU, fp32 means fp32 in these tests

TINY = dict(
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=96,
    conv_dim=(32,) * 7,
    num_conv_pos_embeddings=32,
    num_conv_pos_embedding_groups=4,
)


def make_checkpoint(kind: str, folder: Path, stable: bool = False, normalize: bool | None = False, **fields) -> Path:
    """Write a tiny random checkpoint of a model family exactly as the hub lays it out; `normalize` None: no preprocessor."""
    import transformers as hf

    torch.manual_seed(len(kind))
    values = {**TINY, **fields}
    if stable:
        values.update(do_stable_layer_norm=True, feat_extract_norm="layer")
    if kind == "whisper":
        config = hf.WhisperConfig(
            d_model=64, encoder_layers=4, encoder_attention_heads=4, encoder_ffn_dim=96, decoder_layers=1,
            decoder_attention_heads=4, decoder_ffn_dim=16, vocab_size=16, max_target_positions=8, max_source_positions=1500,
            pad_token_id=1, bos_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        )  # fmt: skip
        hf.WhisperModel(config).save_pretrained(folder)
        hf.WhisperFeatureExtractor().save_pretrained(folder)
        return folder
    if kind == "data2vec-audio":
        values.update(num_conv_pos_embeddings=5, conv_pos_kernel_size=19)
    if kind == "sew-d":
        values.update(position_buckets=16, max_position_embeddings=32)
    if kind in ("sew", "sew-d"):  # 13 convolutions
        values.update(conv_dim=(32,) * 13)
    if kind == "wav2vec2-bert":
        del values["conv_dim"], values["num_conv_pos_embeddings"], values["num_conv_pos_embedding_groups"]
        hf.SeamlessM4TFeatureExtractor(feature_size=80, padding_value=1.0).save_pretrained(folder)
    config_class, model_class = {
        "hubert": (hf.HubertConfig, hf.HubertModel),
        "wav2vec2": (hf.Wav2Vec2Config, hf.Wav2Vec2Model),
        "wavlm": (hf.WavLMConfig, hf.WavLMModel),
        "wav2vec2-conformer": (hf.Wav2Vec2ConformerConfig, hf.Wav2Vec2ConformerModel),
        "wav2vec2-bert": (hf.Wav2Vec2BertConfig, hf.Wav2Vec2BertModel),
        "sew": (hf.SEWConfig, hf.SEWModel),
        "sew-d": (hf.SEWDConfig, hf.SEWDModel),
        "unispeech": (hf.UniSpeechConfig, hf.UniSpeechModel),
        "unispeech-sat": (hf.UniSpeechSatConfig, hf.UniSpeechSatModel),
        "data2vec-audio": (hf.Data2VecAudioConfig, hf.Data2VecAudioModel),
    }[kind]
    model_class(config_class(**values)).save_pretrained(folder)
    if normalize is not None and kind != "wav2vec2-bert":
        hf.Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A factory of tiny checkpoints, each made once: checkpoint("hubert", stable=False, …) → folder."""
    made: dict[str, Path] = {}

    def get(kind: str = "hubert", **options) -> Path:
        key = repr((kind, sorted(options.items())))
        if key not in made:
            made[key] = make_checkpoint(kind, tmp_path_factory.mktemp(kind.replace("-", "")), **options)
        return made[key]

    return get


def speech_like(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """Something with the pulse of speech: syllables of a gliding harmonic voice with noise bursts between, RMS about 0.06."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 60 * rng.random() + 20 * np.sin(2 * np.pi * 0.7 * time + rng.random() * 6)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 20))
    envelope = np.clip(np.sin(2 * np.pi * 3.5 * time + rng.random() * 6), 0, None) ** 0.5
    wave = voice * envelope + 0.05 * rng.standard_normal(len(time)) * (1 - envelope)
    return (0.06 * wave / np.sqrt(np.mean(wave**2) + 1e-12)).astype(np.float32)


@pytest.fixture(scope="session")
def voice():
    """The function `speech_like(seconds, seed)`."""
    return speech_like
