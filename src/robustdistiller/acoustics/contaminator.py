"""Noise and reverberation as a module, for the training of any PyTorch model on speech."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..audio.io import SAMPLE_RATE
from ..audio.manifest import Recording
from ..audio.prepare import prepare_all
from ..config import EnvironmentConfig
from .environment import Environment
from .scene import Scene

Sources = Sequence[str] | Sequence[Recording]


class Contaminator(nn.Module):
    """Contaminates batches of clean speech as a student's training does: noise at an exact SNR, reverberation, or both.

    In training mode every utterance gets a random scene of `config`; in evaluation mode the speech passes unchanged. What
    is drawn depends on `seed`, the utterance's key, `epoch` and `step` alone, not on the batch or the device. Files are read
    when they are first needed and kept in memory up to `cache_mb`; nothing is trained and no gradient flows.

    Args:
        config: What to draw: shares of clean, noise, reverb and both, SNRs in dB, kinds of noise, T60s in seconds, effects.
        noise: Sources of noise as `--noise` takes them (folders, manifests, known corpora), or recordings. Without any, kinds
            that need no files are drawn.
        rooms: Sources of room impulse responses, or recordings. Without any, rooms are simulated.
        speech: Sources of the speech that babble is mixed from, or recordings.
        seed: Of everything drawn. Give every process of a distributed training its own, unless it passes keys.
        cache_mb: Megabytes of decoded noise kept in memory.

    Attributes:
        scenes: What was drawn for the last batch, one `Scene` for each utterance.

    Raises:
        UserError: A source cannot be read, or the configuration asks for what is not there.

    Example:
        >>> import torch
        >>> from robustdistiller import Contaminator, EnvironmentConfig
        >>> contaminate = Contaminator(EnvironmentConfig(clean=0, snr_db=(5, 15)), seed=1)
        >>> clean = torch.randn(2, 16000) * 0.05
        >>> noisy = contaminate(clean, torch.tensor([16000, 12000]), keys=["utterance-1", "utterance-2"])
        >>> noisy.shape, contaminate.scenes[0].kind in ("noise", "reverb", "both")
        (torch.Size([2, 16000]), True)
    """

    def __init__(
        self,
        config: EnvironmentConfig = EnvironmentConfig(),
        noise: Sources = (),
        rooms: Sources = (),
        speech: Sources = (),
        seed: int = 0,
        cache_mb: float = 512.0,
    ) -> None:
        super().__init__()
        banks = (_recordings(noise, "noise"), _recordings(rooms, "rooms"), _recordings(speech, "speech"))
        self.environment = Environment.build(config, *banks, seed, cache_mb=cache_mb)
        self.scenes: list[Scene] = []
        self._batches = 0

    @torch.no_grad()
    def forward(
        self,
        clean: Tensor,
        lengths: Tensor | None = None,
        keys: Sequence[str] | None = None,
        epoch: int = 0,
        step: int = 0,
    ) -> Tensor:
        """Contaminate a batch.

        Args:
            clean: Waveforms (B, T) at 16 kHz, padded with anything.
            lengths: Valid samples of each, (B,); by default all are valid.
            keys: A name for each utterance; equal names and epochs draw the same. By default batches are counted, and the
                count is part of the module's state.
            epoch: The visit to these utterances.
            step: Where the curriculum of the configuration stands, if it has one.

        Returns:
            (B, T) on the device and with the type of `clean`, zero beyond each length.

        Raises:
            ValueError: Shapes, lengths or keys do not fit each other.
        """
        if clean.ndim != 2 or not clean.is_floating_point():
            raise ValueError(f"clean speech is floats of shape (B, T), not {clean.dtype} of shape {tuple(clean.shape)}")
        lengths = torch.full((len(clean),), clean.shape[1]) if lengths is None else lengths.cpu()
        if not self.training:
            self.scenes = []
            return clean
        if keys is None:
            keys = [f"{self._batches}/{row}" for row in range(len(clean))]
            self._batches += 1
        if not len(keys) == len(lengths) == len(clean):
            raise ValueError(f"{len(clean)} utterances, {len(lengths)} lengths and {len(keys)} keys do not match.")
        counts = [int(count) for count in lengths]
        if not all(0 < count <= clean.shape[1] for count in counts):
            raise ValueError(f"lengths lie between 1 and the {clean.shape[1]} samples of a row, not {counts}")
        pairs = zip(keys, counts, strict=True)
        self.scenes = [self.environment.draw(key, count / SAMPLE_RATE, epoch, step) for key, count in pairs]
        return self.environment.render(clean, lengths, None, self.scenes).to(clean.dtype)

    def get_extra_state(self) -> dict[str, Any]:
        """The number of batches so far, so that a resumed training draws on."""
        return {"batches": self._batches}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._batches = int(state["batches"])


def _recordings(sources: Sources, role: Any) -> list[Recording]:
    recordings = [source for source in sources if isinstance(source, Recording)]
    folders = [source for source in sources if not isinstance(source, Recording)]
    return recordings + (prepare_all(folders, role).recordings if folders else [])
