"""The verbs on audio: contaminate, enhance, features, listen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..errors import UserError
from .bars import Bars
from .options import LARGEST_SEED, Device, Overwrite, Sources, argument, number, option, pick_device, source
from .output import Json, answer, say, say_json

if TYPE_CHECKING:
    from ..apply import Applied


def contaminate(
    speech: Annotated[Path, argument("A speech file.")],
    out: Annotated[Path, option("Where to write what a student gets; the draws go beside it as JSON.")],
    noise: Annotated[Sources, source("--noise", "Noise: a folder, manifest or corpus, or `white`, `rain`, ….")] = None,
    rooms: Annotated[Sources, source("--rooms", "Rooms: impulse responses, or `simulated`.")] = None,
    snr: Annotated[float | None, number("In dB; drawn between 0 and 20 when left out.", -100, 100, "DB")] = None,
    seed: Annotated[int, option("With the file name it decides all that is drawn.", min=0, max=LARGEST_SEED)] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Listen to what a student is trained on: one utterance with noise, reverberation or both, and every draw as JSON.

    Example: `robustdistiller contaminate speech.wav --noise cafe/ --rooms rirs/ --snr 5 --seed 1 --out contaminated.wav`
    """
    from ..acoustics.contamination import contaminate_file

    scene = contaminate_file(speech, out, noise or (), rooms or (), snr, seed, overwrite=overwrite)
    say_json(scene.to_dict())


def enhance(
    student: Annotated[str, argument("A student folder with an enhancement head, or `mini-robust`.")],
    inputs: Annotated[list[Path], argument("Files or folders, then the file or folder to write.", "INPUT... OUTPUT")],
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Enhance noisy speech with a student's enhancement head.

    Example: `robustdistiller enhance runs/rd-hubert/student noisy.wav clean.wav`
    """
    if len(inputs) < 2:
        raise UserError("Give at least one input and, last, the file or folder to write.")
    from ..apply import enhance_files
    from ..models.student import load_student

    *files, target = inputs
    loaded = load_student(student).to(pick_device(device))
    with Bars() as bars:
        done = enhance_files(loaded, files, target, bars.of("enhancing"), overwrite)
    _tell(done, target, as_json)


def features(
    student: Annotated[str, argument("A student folder, or `mini-robust`.")],
    inputs: Annotated[list[Path], argument("Files or folders of speech.")],
    out: Annotated[Path, option("The folder to write one .npz per file to.")],
    predictions: Annotated[bool, option("Also write the predicted teacher layers.", "--predictions")] = False,
    half: Annotated[bool, option("Store 16-bit floats.", "--half")] = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the hidden states of every file, with the time of every frame.

    Each `.npz` holds `states` (S, F, D), `times` (F,) in seconds and `names` (S,). Folders keep their layout.
    Example: `robustdistiller features runs/rd-hubert/student speech/ --out features/`
    """
    from ..apply import extract_features
    from ..models.student import load_student

    loaded = load_student(student).to(pick_device(device))
    with Bars() as bars:
        kind = "float16" if half else "float32"
        done = extract_features(loaded, inputs, out, predictions, kind, bars.of("extracting"), overwrite)
    _tell(done, out, as_json)


def listen(
    model: Annotated[str, argument("A streaming student and its chunks, `FOLDER@160+160`, or a `TASK.stream.onnx`.")],
    wav: Annotated[Path | None, argument("A file to listen to; the microphone when left out.")] = None,
    head: Annotated[
        Path | None, option("Its head: the folder `RESULTS/heads/TASK` of `evaluate`, or a file in it.")
    ] = None,
    threshold: Annotated[float, number("The smoothed probability that tells a keyword.", 0.01, 1, "P")] = 0.8,
    smoothing: Annotated[float, number("Seconds that probabilities are averaged over.", 0, 10, "S")] = 0.2,
    refractory: Annotated[float, number("Seconds without another keyword after one.", 0, 60, "S")] = 1.0,
    as_json: Json = False,
) -> None:
    """Tell keywords in a file or at the microphone as they are spoken: label, score, time.

    The microphone needs the package `sounddevice`: `pip install "robustdistiller[microphone]"`.
    Example: `robustdistiller listen runs/mini-stream/student@160+160 speech.wav --head results/heads/keywords`
    """
    import time

    from ..audio.io import read_audio
    from ..runtime.detection import Detector, microphone

    if (head is None) is not model.endswith(".onnx"):
        raise UserError("Give a streaming student and its --head, or an exported .onnx file, which holds its head.")
    if head is None:
        detector = Detector(model, threshold, smoothing, refractory)
    else:
        from ..deployment.stream_export import open_detector

        detector = open_detector(model, str(head), threshold, smoothing, refractory)
    chunks = microphone() if wav is None else [read_audio(wav)]
    found, samples, busy = [], 0, 0.0
    try:
        for chunk in (*chunks, None) if wav is not None else chunks:
            begin = time.perf_counter()
            new = detector.close() if chunk is None else detector.push(chunk)
            busy, samples = busy + time.perf_counter() - begin, samples + (0 if chunk is None else len(chunk))
            found += new
            for detection in new if not as_json else ():
                say(f"{detection.time:8.2f} s  {detection.label}  {detection.score:.2f}")
    except KeyboardInterrupt:
        pass
    seconds = samples / detector.rate
    if as_json:
        say_json({"detections": [d._asdict() for d in found], "seconds": seconds, "latency": detector.latency,
                  "real_time_factor": busy / seconds if seconds else None})  # fmt: skip
    elif seconds:
        say(f"{seconds:.1f} s of audio, latency {detector.latency:.2f} s, real-time factor {busy / seconds:.3f}")


def _tell(done: list[Applied], target: Path, as_json: bool) -> None:
    good = [item for item in done if item.target is not None]
    minutes = sum(item.seconds for item in good) / 60
    line = f"{target}: {len(good)} of {len(done)} files, {minutes:.1f} min of audio"
    answer(as_json, [vars(item) for item in done], line)
