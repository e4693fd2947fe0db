"""From easy to hard: lowest SNR and share of reverberation as functions of the training step (arXiv 2211.06562)."""

from __future__ import annotations

from ..config import EnvironmentConfig


def progress(config: EnvironmentConfig, step: int) -> float:
    """How much of the curriculum is behind: 0 at step 0, 1 from `curriculum.steps` on and without a curriculum."""
    steps = config.curriculum.steps
    return min(max(step, 0) / steps, 1.0) if steps else 1.0


def snr_limits(config: EnvironmentConfig, step: int) -> tuple[float, float]:
    """Lowest and highest SNR in dB at `step`: the lowest falls linearly from `start_snr_db` to `snr_db[0]`."""
    low, high = config.snr_db
    done = progress(config, step)
    if done < 1:
        low = config.curriculum.start_snr_db + (low - config.curriculum.start_snr_db) * done
    return low, max(low, high)


def snr_at(config: EnvironmentConfig, step: int, uniform: float) -> float:
    """The SNR in dB that a `uniform` number in [0, 1) stands for at `step`, on the grid of `snr_step_db` if any."""
    low, high = snr_limits(config, step)
    grid = config.snr_step_db
    if not grid:
        return low + (high - low) * uniform
    # The grid hangs on snr_db[0] at every step, so that a curriculum draws the same values as the rest of the run.
    origin = config.snr_db[0]
    first = round((low - origin) / grid)
    last = max(first, int((high - origin) / grid + 1e-9))
    return origin + grid * (first + int(uniform * (last - first + 1)))


def keeps_room(config: EnvironmentConfig, step: int, uniform: float) -> bool:
    """Whether an utterance whose condition has reverberation already gets it at `step`; the share rises from 0 to 1."""
    return uniform < progress(config, step)
