"""The student: a small encoder that any `transformers` user can open, with the heads of its two tasks beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..config import StreamingConfig
from ..errors import UserError, explained
from ..files import read_json, replacing_folder, write_json, write_text
from ..outputs import STUDENT_FILES
from .config_limits import check_finite, check_values
from .encoder import ConvEncoder, EncoderOutput
from .frames import GRID, checked_batch, mask_from_lengths
from .heads import Enhancement, EnhancementHead, PredictionHeads
from .hub import load_encoder, quiet_transformers
from .repository import locate
from .streaming import Chunking, check_streamable, draw_chunking, operating_point, split_operating_point

HEADS = "heads.safetensors"
HEADS_CONFIG = "heads.json"


@dataclass
class StudentOutput:
    """encoded: the encoder's states; predictions (B, L, F, D_teacher) and enhancement where asked for, else None."""

    encoded: EncoderOutput
    predictions: Tensor | None
    enhancement: Enhancement | None


class Student(nn.Module):
    """Encoder, prediction heads and enhancement head.

    Args:
        encoder: The small encoder.
        heads: What predicts the teacher's layers, if anything.
        enhancer: What reconstructs the clean spectrogram, if anything.
        layers: The teacher's layers that the heads predict, from 1.
        tap: The state that feeds the enhancement head: "last", "cnn" (the projected CNN output, as in the official code) or a
            layer number.
        name: How messages call it.
        streaming: The chunks that it is trained with, if it can stream.

    Attributes:
        chunking: How it attends in evaluation mode, None for offline (docs/streaming.md).

    Raises:
        UserError: `tap` is a layer that it does not have, or the encoder cannot stream.
    """

    def __init__(
        self,
        encoder: ConvEncoder,
        heads: PredictionHeads | None = None,
        enhancer: EnhancementHead | None = None,
        layers: tuple[int, ...] = (),
        tap: str | int = "cnn",
        name: str = "student",
        streaming: StreamingConfig | None = None,
    ):
        super().__init__()
        if streaming is not None:
            check_streamable(encoder.model, encoder.normalize)
        self.streaming = streaming
        self.chunking: Chunking | None = None
        self.encoder, self.heads, self.enhancer = encoder, heads, enhancer
        self.layers, self.tap, self.name = tuple(layers), tap, name
        self.hidden_size = encoder.hidden_size
        self.num_parameters = sum(p.numel() for p in encoder.parameters())
        if isinstance(tap, int) and tap > encoder.num_layers:
            raise UserError(f"objectives.enhancement.tap is layer {tap}, but the student has {encoder.num_layers}.")

    @property
    def states_names(self) -> tuple[str, ...]:
        """The states shown to downstream tasks, in order."""
        return ("cnn", *(f"layer {i + 1}" for i in range(self.encoder.num_layers)))

    def forward(
        self, wave: Tensor, lengths: Tensor | None = None, predict: bool = True, enhance: bool = True
    ) -> StudentOutput:
        """Contaminated waveforms (B, T) with valid `lengths` (B,) → states, predictions and enhancement."""
        if lengths is None:
            lengths = torch.full((wave.shape[0],), wave.shape[1], device=wave.device)
        chunking = draw_chunking(self.streaming) if self.training and self.streaming is not None else self.chunking
        encoded = self.encoder(wave, lengths, chunking)
        predictions = self.heads(encoded.states) if predict and self.heads is not None else None
        enhancement = None
        if enhance and self.enhancer is not None:
            enhancement = self.enhancer(self._tapped(encoded), encoded.lengths, wave, lengths)
        return StudentOutput(encoded, predictions, enhancement)

    def _tapped(self, encoded: EncoderOutput) -> Tensor:
        if self.tap == "cnn":
            return encoded.states[0]
        return encoded.states[-1] if self.tap == "last" else encoded.states[int(self.tap)]

    def states(
        self, wave: Tensor, lengths: Tensor | Sequence[int] | None = None, predictions: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Compute features for downstream tasks; every row is what it would be alone.

        In training mode gradients flow back into the student (for fine-tuning); in evaluation mode none are kept.

        Args:
            wave: Waveforms (B, T) at 16 kHz.
            lengths: Valid samples (B,); None for T everywhere.
            predictions: Whether to add the L predicted teacher layers.

        Returns:
            States (B, S, F, D), zero beyond the valid frames: the projected CNN output, layer 1, …; and frame lengths (B,).

        Raises:
            UserError: For waveforms or lengths that are none, or a student without predictions of its own width.
        """
        output = self._called(wave, lengths, predict=predictions, enhance=False)
        stacked = torch.stack([state.float() for state in output.encoded.states], 1)
        if predictions:
            if output.predictions is None or output.predictions.shape[-1] != stacked.shape[-1]:
                raise UserError(f"The student {self.name} has no predictions of its own width: use its encoder states.")
            stacked = torch.cat([stacked, output.predictions.float()], 1)
        frames = output.encoded.lengths
        return stacked * mask_from_lengths(frames, stacked.shape[2])[:, None, :, None], frames

    def enhance(self, wave: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Estimate the clean speech; gradients as in `states`.

        Args:
            wave: Contaminated waveforms (B, T) at 16 kHz.
            lengths: Valid samples (B,); None for T everywhere.

        Returns:
            Waveforms (B, T), zero beyond the valid samples.

        Raises:
            UserError: For waveforms or lengths that are none, or a student without an enhancement head.
        """
        self.enhancement_head()
        output = self._called(wave, lengths, predict=False, enhance=True)
        assert output.enhancement is not None
        return output.enhancement.waveform(wave.shape[1])

    def enhancement_head(self) -> EnhancementHead:
        """The enhancement head. Raises `UserError` where there is none."""
        if self.enhancer is None:
            raise UserError(f"{self.name} has no enhancement head: distil with objectives.enhancement.enabled=true.")
        return self.enhancer

    def _called(
        self, wave: Tensor, lengths: Tensor | Sequence[int] | None, predict: bool, enhance: bool
    ) -> StudentOutput:
        wave, lengths = checked_batch(wave, lengths)
        wave = wave.to(next(self.parameters()).dtype)
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            return self(wave, lengths, predict=predict, enhance=enhance)  # type: ignore[no-any-return]

    def heads_config(self) -> dict[str, Any]:
        """What is needed to rebuild the heads; plain JSON."""
        config: dict[str, Any] = {"format": 1, "layers": list(self.layers), "tap": self.tap}
        if self.heads is not None:
            config["targets"] = self.heads.outputs[0].out_features
            if self.heads.sources is not None:
                config["sources"] = list(self.heads.sources)
        if self.enhancer is not None:
            lstm = self.enhancer.lstm
            config["enhancement"] = {
                "hidden": lstm.hidden_size, "layers": lstm.num_layers, "dropout": lstm.dropout,
                "frame_rate": self.enhancer.frame_rate,
            }  # fmt: skip
        if self.streaming is not None:
            config["streaming"] = self.streaming.model_dump(mode="json")
        return config

    def save(self, folder: str | os.PathLike[str], texts: dict[str, str] | None = None) -> None:
        """Write a folder that ``transformers.AutoModel.from_pretrained`` opens; `texts` are further files by name.

        The folder is replaced as a whole; an older one survives until the new one is complete.
        """
        from transformers import Wav2Vec2FeatureExtractor

        with replacing_folder(folder, STUDENT_FILES) as temporary:
            with quiet_transformers():
                self.encoder.model.save_pretrained(temporary)
            Wav2Vec2FeatureExtractor(
                do_normalize=self.encoder.normalize,
                return_attention_mask=True,  # without it padding is attended to; see the model card for what remains
            ).save_pretrained(temporary)
            tensors = {
                f"{part}.{name}": value.contiguous()
                for part, module in (("heads", self.heads), ("enhancer", self.enhancer))
                if module is not None
                for name, value in module.state_dict().items()
            }
            if tensors:
                save_file(tensors, temporary / HEADS, metadata={"format": "pt"})
            write_json(temporary / HEADS_CONFIG, self.heads_config())
            for name, text in (texts or {}).items():
                write_text(temporary / name, text)


def load_student(folder: str | os.PathLike[str]) -> Student:
    """Open a student folder, or a shipped student such as ``mini-robust`` by its name, in evaluation mode.

    A plain HuBERT or WavLM opens without heads.

    Args:
        folder: A folder, a shipped name, or of the hub a name or name@revision. ``folder@160+80`` is a streaming student on a
            stream with chunks of 160 ms and a look-ahead of 80 ms.

    Returns:
        The student, in evaluation mode on the CPU.

    Raises:
        UserError: The folder is not a student, or its parts do not fit together.

    Example:
        >>> import torch
        >>> from robustdistiller import load_student
        >>> student = load_student("mini-robust")
        >>> states, frames = student.states(torch.randn(1, 16000) * 0.05)
        >>> states.shape, frames.tolist()  # [projected CNN output, layer 1, layer 2], 20 ms frames
        (torch.Size([1, 3, 49, 256]), [49])
        >>> student.enhance(torch.randn(1, 16000) * 0.05).shape
        torch.Size([1, 16000])
    """
    name, point = split_operating_point(os.fspath(folder))
    if point is not None:
        student = load_student(name)
        if student.streaming is None:
            raise UserError(f"{name} was not trained to stream: leave @{point[0]}+{point[1]} out.")
        student.chunking = operating_point(student.streaming, *point)
        return student
    files = locate(folder, also=(HEADS, HEADS_CONFIG))
    encoder = load_encoder(files)
    if not isinstance(encoder, ConvEncoder):
        raise UserError(f"{folder} is a teacher (its input is log-mel): give the folder that `distill` wrote.")
    if encoder.grid != GRID:
        found, wanted = (f"every {grid.stride} samples of {grid.field}" for grid in (encoder.grid, GRID))
        raise UserError(f"The model in {folder} has a frame {found}: a student has one {wanted}.")
    if not (files.folder / HEADS_CONFIG).is_file():
        return Student(encoder, name=str(folder)).eval()
    with explained(f"The heads in {folder} cannot be read", "copy the student folder again."):
        return _with_heads(encoder, files.folder, str(folder)).eval().requires_grad_(True)


def _with_heads(encoder: ConvEncoder, folder: Path, name: str) -> Student:
    config = read_json(folder / HEADS_CONFIG, "heads description")
    check_values(config, str(folder / HEADS_CONFIG))
    layers, tap, sources = tuple(config["layers"]), config["tap"], config.get("sources")
    if not all(type(layer) is int and layer > 0 for layer in layers) or len(layers) > 256:
        raise ValueError("its layers are no list of layer numbers")
    if sources is not None and not all(type(k) is int and 0 <= k <= encoder.num_layers for k in sources):
        raise ValueError("its sources are no list of the student's states")
    if tap not in ("last", "cnn") and not (type(tap) is int and tap > 0):
        raise ValueError(f"its tap is {tap!r:.20}")
    parts: dict[str, Any] = {"heads": None, "enhancer": None}
    # On the meta device nothing is allocated until the tensors of the file are put in, which must fit.
    with torch.device("meta"):
        if "targets" in config:
            parts["heads"] = PredictionHeads(encoder.hidden_size, config["targets"], len(layers), sources)
        if "enhancement" in config:
            parts["enhancer"] = EnhancementHead(encoder.hidden_size, **{"frame_rate": 100, **config["enhancement"]})
    tensors = load_file(folder / HEADS) if (folder / HEADS).is_file() else {}
    for part, module in parts.items():
        if module is not None:
            prefix = f"{part}."
            values = {k[len(prefix) :]: v.float() for k, v in tensors.items() if k.startswith(prefix)}
            module.load_state_dict(values, assign=True)
            check_finite(module, str(folder / HEADS))
    streaming = StreamingConfig.model_validate(config["streaming"]) if "streaming" in config else None
    return Student(encoder, **parts, layers=layers, tap=tap, name=name, streaming=streaming)
