"""The verbs on audio files: contaminate, enhance, features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from .options import LARGEST_SEED, Device, Overwrite, Sources, between, pick_device, source
from .output import Json, say, say_json
from .progress import Bars

if TYPE_CHECKING:
    from ..apply import Applied


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`."""
    for verb in (contaminate, enhance, features):
        app.command()(verb)


def contaminate(
    speech: Annotated[Path, typer.Argument(help="A speech file.")],
    out: Annotated[Path, typer.Option(help="Where to write what a student gets; the draws go beside it as JSON.")],
    noise: Annotated[
        Sources, source("--noise", "Noise: a folder, manifest or corpus, or `white`, `rain`, `music`, ….")
    ] = None,
    rooms: Annotated[Sources, source("--rooms", "Rooms: impulse responses, or `simulated`.")] = None,
    snr: Annotated[
        float | None,
        typer.Option(
            parser=between(-100, 100), metavar="DB", help="The SNR in dB; drawn between 0 and 20 when left out."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="The same seed and file name give the same contamination.")
    ] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Hear what a student hears: one utterance with noise, reverberation or both, and every draw as JSON.

    Example: `robustdistiller contaminate speech.wav --noise cafe/ --rooms rirs/ --snr 5 --seed 1 --out heard.wav`
    """
    from ..acoustics.contamination import contaminate_file

    scene = contaminate_file(speech, out, noise or (), rooms or (), snr, seed, overwrite=overwrite)
    say_json(scene.to_dict())


def enhance(
    student: Annotated[str, typer.Argument(help="A student folder with an enhancement head, or `mini-robust`.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT... OUTPUT", help="Files or folders, then the file or folder to write."),
    ],
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
    student: Annotated[str, typer.Argument(help="A student folder, or `mini-robust`.")],
    inputs: Annotated[list[Path], typer.Argument(help="Files or folders of speech.")],
    out: Annotated[Path, typer.Option(help="The folder to write one .npz per file to.")],
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Also write the predicted teacher layers.")
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="Store 16-bit floats.")] = False,
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
        done = extract_features(
            loaded, inputs, out, predictions, "float16" if half else "float32", bars.of("extracting"), overwrite
        )
    _tell(done, out, as_json)


def _tell(done: list[Applied], target: Path, as_json: bool) -> None:
    good = [item for item in done if item.target is not None]
    if as_json:
        say_json([vars(item) for item in done])
    else:
        seconds = sum(item.seconds for item in good)
        say(f"{target}: {len(good)} of {len(done)} files, {seconds / 60:.1f} min of audio")
