"""Keywords from a WAV file or the microphone, with the runtime alone: no PyTorch.

    python examples/keyword_spotting.py exported/keywords.stream.int8.onnx [speech.wav]

The file comes from `robustdistiller export STUDENT@160+160 --task HEAD`; the microphone needs `pip install sounddevice`.
"""

import sys

try:
    from robustdistiller_runtime import Detector, UserError, microphone, read_wave
except ImportError:  # the full package has the same under another name
    from robustdistiller.errors import UserError
    from robustdistiller.runtime import Detector, microphone, read_wave

try:
    detector = Detector(sys.argv[1], threshold=0.8, threads=1)
    chunks = [read_wave(sys.argv[2])] if len(sys.argv) > 2 else microphone()
    for chunk in chunks:
        for detection in detector.push(chunk):
            print(f"{detection.time:8.2f} s  {detection.label}  {detection.score:.2f}", flush=True)
    for detection in detector.close():
        print(f"{detection.time:8.2f} s  {detection.label}  {detection.score:.2f}")
except IndexError:
    sys.exit("usage: keyword_spotting.py EXPORTED.stream.onnx [SPEECH.wav]")
except UserError as error:
    sys.exit(f"keyword_spotting: {error}")
except KeyboardInterrupt:
    pass
