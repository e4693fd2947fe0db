"""From several channels to one: their mean, or one of them where they cancel each other."""

from __future__ import annotations

import numpy as np

# of the energy that the mean of independent channels has: below, they cancel (two at a correlation of -0.75)
CANCELLED = 0.25
ALIVE = 0.01  # of the energy of the loudest channel: below, a channel is dead


class Downmix:
    """Averages the channels of one file block by block, and finds out whether they cancel, as antiphase stereo does."""

    def __init__(self) -> None:
        # energies of differences, in which a constant offset does not count
        self._channels, self._mean = (np.zeros(1), 0.0)

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """The mean of a block (T, C) over its channels, (T,) float32."""
        if block.shape[1] == 1:
            return block[:, 0]
        mean = block.mean(axis=1, dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            self._channels = self._channels + np.square(np.diff(block, axis=0), dtype=np.float64).sum(axis=0)
            self._mean += float(np.square(np.diff(mean), dtype=np.float64).sum())
        return mean

    @property
    def instead(self) -> int | None:
        """The channel to take instead of the mean: the first that is alive; None where the mean is good."""
        channels = self._channels
        independent = channels.sum() / len(channels) ** 2
        if len(channels) == 1 or not independent > 0 or self._mean >= CANCELLED * independent:
            return None
        return int(np.argmax(channels >= ALIVE * channels.max()))


def downmix(block: np.ndarray) -> np.ndarray:
    """All channels (T, C) as one, (T,) float32: their mean, or the first that is alive where they cancel each other."""
    mix = Downmix()
    mean = mix(block)
    return mean if mix.instead is None else np.ascontiguousarray(block[:, mix.instead], np.float32)
