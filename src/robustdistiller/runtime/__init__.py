"""Exported students at work without PyTorch: this package needs onnxruntime, numpy and soundfile, and nothing else.

    from robustdistiller.runtime import Encoder, read_wave

    encoder = Encoder("exported/encoder.int8.onnx")
    features = encoder(read_wave("speech.wav"))      # features.states (S, F, D), features.times (F,)

    stream = encoder.stream()                        # chunks of any size in, frames out
    for chunk in microphone:
        for features in stream.push(chunk):
            ...

`Stream` is the exact stream of a streaming student, `Detector` one with a head that tells keywords.
`Enhancer` cleans speech and `Classifier` answers with a label (a spoken command, say); both work on whole recordings and on
streams. See docs/deployment.md for what a stream is equal to and how late it is.
"""

from __future__ import annotations

import os

# onnxruntime otherwise leaves an identifier and a database of events in the user's home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from .container import Description, describe
from .detection import Detection, Detector, Trigger, microphone
from .models import Answer, Classifier, Encoder, Enhancer, Features
from .sound import SAMPLE_RATE, read_wave
from .stream import Stream

__all__ = [
    "SAMPLE_RATE", "Answer", "Classifier", "Description", "Detection", "Detector", "Encoder", "Enhancer", "Features",
    "Stream", "Trigger", "describe", "microphone", "read_wave",
]  # fmt: skip
