"""Exported students at work without PyTorch: what `robustdistiller.runtime` is, for a device that has only this.

Example:
    >>> from robustdistiller_runtime import Encoder, read_wave
    >>> features = Encoder("exported/encoder.int8.onnx")(read_wave("speech.wav"))
    >>> features.states.shape  # (states, frames, hidden)
"""

from .errors import AudioError, UserError
from .runtime import *  # noqa: F403
from .runtime import __all__ as _names

__all__ = ["AudioError", "UserError", *_names]
