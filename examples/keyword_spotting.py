"""Keyword spotting on a device: an exported classifier listens to a WAV file or to the microphone.

    python examples/keyword_spotting.py exported/keywords.int8.onnx speech.wav
    python examples/keyword_spotting.py exported/keywords.int8.onnx --microphone     (needs: pip install sounddevice)

Needs the runtime alone (pip install ./runtime): no PyTorch. Every quarter of a second it answers for the last second; a word
is reported once its probability, averaged over the last three answers, passes the threshold. The head must have been trained
with a class of other words (`_unknown_`): without one, any speech is one of its words.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterator

import numpy as np

try:
    from robustdistiller_runtime import SAMPLE_RATE, Answer, Classifier, UserError, read_wave
except ImportError:  # the full package has the same under another name
    from robustdistiller.errors import UserError
    from robustdistiller.runtime import SAMPLE_RATE, Answer, Classifier, read_wave

QUIET = {"_unknown_", "_silence_", "unknown", "silence"}  # labels that are not a word to react to


class Spotter:
    """Turns answers into events: smooths over a few, and is silent before the first whole window and after each event."""

    def __init__(
        self, labels: tuple[str, ...], threshold: float, window: float, smoothing: int = 3, pause: float = 1.0
    ):
        self.labels, self.threshold, self.smoothing, self.pause = labels, threshold, smoothing, pause
        self.recent: deque[np.ndarray] = deque(maxlen=smoothing)
        self.silent_until = window  # what comes earlier is an answer about a piece of a word

    def update(self, answer: Answer) -> tuple[str, float] | None:
        """The word that this answer completes, with its probability, or None."""
        (distribution,) = list(answer.distributions.values())[:1]
        self.recent.append(distribution)
        if len(self.recent) < self.smoothing:
            return None
        mean = np.mean(self.recent, axis=0)
        best = int(mean.argmax())
        word, probability = self.labels[best], float(mean[best])
        if len(self.recent) < (self.recent.maxlen or 0):  # one look at the first quarter of a second proves nothing
            return None
        if word in QUIET or probability < self.threshold or answer.time < self.silent_until:
            return None
        self.silent_until = answer.time + self.pause
        return word, probability


def microphone(block: int = 1600) -> Iterator[np.ndarray]:
    """Blocks of samples from the default microphone, until interrupted."""
    try:
        import sounddevice
    except ImportError:
        raise UserError("The microphone needs the package 'sounddevice': run  pip install sounddevice.") from None
    with sounddevice.InputStream(SAMPLE_RATE, block, channels=1, dtype="float32") as stream:
        while True:
            yield stream.read(block)[0][:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Keyword spotting with an exported classifier.")
    parser.add_argument("model", help="an .onnx file that `robustdistiller export --task` wrote")
    parser.add_argument("wav", nargs="?", help="a file of 16 kHz; leave it out with --microphone")
    parser.add_argument("--microphone", action="store_true", help="listen to the default microphone")
    parser.add_argument("--threshold", type=float, default=0.6, help="probability that counts as heard")
    parser.add_argument("--window", type=float, default=1.0, help="seconds that an answer is about")
    parser.add_argument("--hop", type=float, default=0.25, help="seconds between two answers")
    options = parser.parse_args()
    if bool(options.wav) == options.microphone:
        parser.error("give a WAV file or --microphone")
    classifier = Classifier(options.model, threads=1)
    spotter = Spotter(next(iter(classifier.labels.values())), options.threshold, options.window)
    stream = classifier.stream(options.window, options.hop)
    chunks = microphone() if options.microphone else np.array_split(read_wave(options.wav), 20)
    for answer in stream.run(chunks):
        event = spotter.update(answer)
        if event:
            print(f"{answer.time:7.2f} s  {event[0]}  ({event[1]:.0%})", flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"keyword_spotting: {error}")
    except KeyboardInterrupt:
        pass
