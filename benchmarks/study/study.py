"""The study on real recordings: distil every row of rows.yaml, then measure all of them on tasks in noise and rooms.

    python benchmarks/study/study.py prepare --data DATA --out WORK [--espeak FOLDER]   manifests of three disjoint parts, tasks
    python benchmarks/study/study.py train robust plain --seeds 0 1 2 --steps 600 --out WORK [--teacher NAME] [--set A=B]
    python benchmarks/study/study.py evaluate --rows robust plain --models teacher=mini-hubert --part valid|test --out WORK
    python benchmarks/study/study.py ship --student FOLDER --to FOLDER      a copy in half precision without paths

`train` and `evaluate` only run the commands `robustdistiller distill` and `robustdistiller evaluate`, and print them; a run
that is there goes on where it stopped. The trainings of a row are one model there: tables, differences and pictures are in the
summary.md, results.csv and TASK.svg of its results. `--at-once 16` trains side by side on one GPU, `--seconds 500` stops and
saves what has not ended by then; each run's output is in WORK/logs. DATA holds tasks/, speech/, noise/ and rir/ with a manifest
in each set. The rows of open speech hear only what a shipped student may have heard: Speech Commands, LJ Speech and the
synthetic voices in FOLDER, which `python benchmarks/mini_teacher_speech.py --hours 3 --out FOLDER` makes.

Parts, of every task: `valid` speakers are for choosing among rows, `test` speakers are looked at once, heads learn on the
rest (emotion and phones: the test is all speakers, in six folds). `test` is split off the training speakers, but for keywords
off the validation speakers, because the training speakers are heard in the unlabelled speech. Who speaks is learned from one
sentence and told from another, in two takes (valid and test). No speaker, noise type or room of `test` is heard in
distillation: two types of recorded noise and five rooms are kept for it.
"""

from __future__ import annotations

from robustdistiller.process import prepare_process

prepare_process()  # before torch is imported

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import yaml
from safetensors.torch import load_file, save_file
from side_by_side import Job, run_all

from robustdistiller.audio.manifest import Recording, read_manifest, write_manifest
from robustdistiller.files import replacing_folder, write_text
from robustdistiller.outputs import claim_workplace
from robustdistiller.randomness import fraction, generator

HERE = Path(__file__).parent
OPEN_SPEECH = ("speech_commands_words", "speech_commands_more", "ljspeech_141", "ljspeech_more")
OTHER_SPEECH = ("mboshi", "mboshi_more")
NOISE = ("urbansound8k_part", "speech_commands_bg", "speechbrain_fixtures")
ROOMS = ("openair", "surrey_iosr", "unverified")
TEST_NOISE = {"drilling", "street_music"}
LEFT_OUT = {"children_playing"}  # voices
TEST_ROOMS = {
    "rymer_auditorium",
    "auralizr_stairwell",
    "genesis6_live_room",
    "auralizr_basement",
    "audiomentations_stereo",
}
VALID_ROOMS = {"piper_concrete_room", "speechbrain_rir1"}
TASKS = {
    "keywords": ("speech_commands_v2_testset", "Keyword spotting", {"kind": "classification"}, ("valid", 0.6)),
    "intents": (
        "picovoice_barista",
        "Coffee orders",
        {"kind": "slots", "slots": ["multi"], "speaker": "speaker_cluster"},
        ("train", 0.25),
    ),
    "emotion": ("ravdess", "Emotion recognition", {"kind": "classification", "level_dbfs": -26}, ("train", 0.3)),
    "phones": ("timit_sample", "Phones, frame by frame", {"kind": "frames", "text": "phones", "fold": "timit39"},
               ("train", 0.3)),
}  # fmt: skip
SPEAKERS = {"name": "speakers", "title": "Speaker identification", "source": "speakers.jsonl", "kind": "classification",
            "label": "speaker", "level_dbfs": -26}  # fmt: skip
SPOKEN = {"name": "spoken-intents", "title": "Intents, synthetic voices", "kind": "slots", "slots": ["slots"],
          "source": "synthetic:intents", "train": {"where": {"split": "train"}, "limit": 2000},
          "valid": {"where": {"split": "valid"}, "limit": 300}}  # fmt: skip
# Negatives: coffee orders (English, 42 speakers) and sentences of Mboshi, which no training of open speech had.
DETECTION = {"name": "running-keywords", "title": "Ten keywords in running speech", "kind": "detection",
             "source": "keywords.jsonl", "negatives": {"source": "negatives.jsonl"},
             "train": {"where": {"split": "train"}, "limit": 300}}  # fmt: skip
SENTENCES = ("Kids are talking by the door", "Dogs are sitting by the door")
FOLDS = {"emotion": 6, "phones": 6}  # where the test is all that there is, every sentence once
LIMIT = 80  # test utterances of the tasks whose utterances are long
CONDITIONS = {"all": "conditions.yaml", "few": "few.yaml", "main": "main.yaml", "detection": "detection.yaml"}


def prepare(data: Path, out: Path, espeak: Path | None = None) -> None:
    """Write manifests (absolute paths), task files and conditions to `out`; `espeak`: a folder of synthetic voices."""
    out.mkdir(parents=True, exist_ok=True)
    # Without a split, so that `distill` holds out speakers of all sets, not of the one that names some.
    free, other = ([replace(r, split=None) for name in names for r in _read(data / "speech" / name)]
                   for names in (OPEN_SPEECH, OTHER_SPEECH))  # fmt: skip
    speech = free + other
    write_manifest(out / "speech.jsonl", speech)
    if espeak is not None:
        write_manifest(out / "open.jsonl", free + [replace(r, split=None) for r in _read(espeak)])
    noise = [r for name in NOISE for r in _read(data / "noise" / name) if r.label not in LEFT_OUT]
    noise = [replace(r, split=_noise_part(r)) for r in noise]
    write_manifest(out / "noise.jsonl", noise)
    rooms = [replace(r, split=_room_part(r)) for name in ROOMS for r in _read(data / "rir" / name)]
    write_manifest(out / "rooms.jsonl", rooms)
    for name, (folder, title, fields, taken) in TASKS.items():
        write_manifest(out / f"{name}.jsonl", _three_parts(_read(data / "tasks" / folder), *taken))
        for part, split in (("valid", {"valid": {"hold_out": 0.15}}), ("test", {})):
            chosen = {"where": {"split": part}} | ({} if name == "keywords" else {"limit": LIMIT})
            task = {"name": name, "title": title, "source": f"{name}.jsonl", **fields, **split, "test": chosen}
            if part == "test" and name in FOLDS:
                task = {"name": name, "title": title, "source": f"{name}.jsonl", **fields, "folds": FOLDS[name]}
            write_text(out / f"{name}-{part}.yaml", yaml.safe_dump(task, sort_keys=False))
    for part, heads in (("valid", {"valid": {"hold_out": 0.15}}), ("test", {})):
        task = {**SPOKEN, **heads, "test": {"where": {"split": part}, "limit": 500}}
        write_text(out / f"spoken-intents-{part}.yaml", yaml.safe_dump(task, sort_keys=False))
    for part in ("valid", "test"):
        task = {
            **DETECTION,
            "valid": {"hold_out": 0.15, "limit": 100},
            "test": {"where": {"split": part}, "limit": 144},
        }
        write_text(out / f"detection-{part}.yaml", yaml.safe_dump(task, sort_keys=False))
    orders = [replace(r, speaker=str(r.extra["speaker_cluster"])) for r in _read(data / "tasks" / "picovoice_barista")]
    orders = [replace(r, split="train" if fraction("orders", r.speaker) < 0.3 else "test") for r in orders]
    told = [replace(r, split={"kouarata": "test", "martial": "valid"}[str(r.speaker)])
            for r in _read(data / "speech" / "mboshi_more") if r.speaker != "abiayi"]  # fmt: skip
    told = [r for r in told if r.split == "valid" or fraction("negatives", r.id) < 0.4]
    write_manifest(
        out / "negatives.jsonl", [replace(r, extra={"text": r.extra.get("text_asr")}) for r in orders] + told
    )
    write_manifest(out / "speakers.jsonl", [replace(r, split=None) for r in _read(data / "tasks" / "ravdess")])
    for part, take in (("valid", 1), ("test", 2)):
        learnt, asked = ({"text": sentence} for sentence in SENTENCES)
        heads = {"train": {"where": {**learnt, "take": 1}}, "valid": {"where": {**learnt, "take": 2}}}
        task = {**SPEAKERS, **heads, "test": {"where": {**asked, "take": take}, "limit": LIMIT}}
        write_text(out / f"speakers-{part}.yaml", yaml.safe_dump(task, sort_keys=False))
    for name in CONDITIONS.values():
        write_text(out / name, (HERE / name).read_text())
    for name, found in (("speech", speech), ("noise", noise), ("rooms", rooms)):
        print(f"{name}: {_count(found)}")


def _read(folder: Path) -> list[Recording]:
    """A set's recordings; ids are unique over sets, and speakers stay what they are called in their corpus."""
    return [replace(r, id=f"{folder.name}/{r.id}") for r in read_manifest(folder / "manifest.jsonl")]


def _noise_part(recording: Recording) -> str | None:
    return "test" if recording.label in TEST_NOISE else recording.split


def _room_part(recording: Recording) -> str:
    return "test" if recording.group in TEST_ROOMS else "valid" if recording.group in VALID_ROOMS else "train"


def _three_parts(recordings: list[Recording], split: str, share: float) -> list[Recording]:
    """`share` of the speakers of `split` become the test part; recordings without a speaker count as one each."""

    def speaker(recording: Recording) -> str:
        return str(recording.speaker or recording.extra.get("speaker_cluster") or recording.id)

    speakers = sorted({speaker(r) for r in recordings if r.split == split})
    order = generator(0, "third part").permutation(len(speakers))
    chosen = {speakers[i] for i in order[: round(share * len(speakers))]}
    return [replace(r, split="test") if r.split == split and speaker(r) in chosen else r for r in recordings]


def _count(recordings: Iterable[Recording]) -> str:
    parts: dict[str, list[float]] = {}
    for recording in recordings:
        parts.setdefault(recording.split or "unassigned", []).append(recording.seconds)
    return ", ".join(f"{part} {len(s)} recordings, {sum(s) / 3600:.2f} h" for part, s in sorted(parts.items()))


def train(
    rows: list[str], seeds: list[int], steps: int, out: Path, teacher: str | None, settings: list[str], tag: str,
    at_once: int = 1, seconds: float = float("inf"),
) -> None:  # fmt: skip
    """Distil rows × seeds into out/runs/ROW[-TAG]-SEED, `at_once` side by side, for at most so many `seconds`."""
    jobs = list(training_jobs(rows, seeds, steps, out, teacher, settings, tag))
    failed = run_all(iter(jobs), lambda: at_once, time.monotonic() + seconds)
    if failed:
        raise SystemExit(
            f"{len(failed)} of {len(jobs)} runs have not ended: look at {failed[0].log}, then run this again."
        )


def training_jobs(
    rows: list[str], seeds: list[int], steps: int, out: Path, teacher: str | None, settings: list[str], tag: str
) -> Iterator[Job]:
    """The commands of rows × seeds; each goes on where it stopped. The sources are scanned once for all."""
    known = yaml.safe_load((HERE / "rows.yaml").read_text())
    for seed in seeds:
        for row in rows:
            if row not in known["rows"]:
                raise SystemExit(f"There is no row {row}: choose from {', '.join(known['rows'])}.")
            about = known["rows"][row]
            fixed, heard = known["recipes"].get(about["recipe"], []), known["materials"][about.get("materials", "all")]
            shape = known["shapes"][about["shape"]] if "shape" in about else []
            fixed = [*known["common"], *fixed, *heard["set"], *shape, *about.get("set", [])]
            name = "-".join(filter(None, [row, tag, str(seed)]))
            scans = out / "runs" / name / "manifests" / "cache"
            if not scans.exists():
                claim_workplace(scans.parents[1], "distill", ())
                scans.parent.mkdir(parents=True, exist_ok=True)
                (out / "scans").mkdir(exist_ok=True)
                scans.symlink_to((out / "scans").resolve())
            command = ["distill", about["recipe"], "--resume", "--steps", str(steps), "--out", str(out / "runs" / name)]
            for role, source in heard["from"].items():
                command += [f"--{role}", str(out / f"{source}.jsonl")]
            if teacher:
                command += ["--teacher", teacher]
            chosen = [*fixed, f"training.seed={seed}", *settings]
            yield Job(command + [word for value in chosen for word in ("--set", value)], out / "logs" / f"{name}.log")


def evaluate(
    models: list[str], rows: list[str], tasks: list[str], part: str, out: Path, reference: str | None, conditions: str,
    more: list[str],
) -> None:  # fmt: skip
    """Measure models and rows on the `part` of tasks under all or few conditions, into out/results-PART or out/few-PART."""
    results = out / ("results" if conditions == "all" else conditions)
    command = [
        "evaluate",
        *models,
        "--conditions",
        str(out / CONDITIONS[conditions]),
        "--out",
        f"{results}-{part}",
        *more,
    ]
    for row in rows:
        command += ["--group", f"{row}={out}/runs/{row}-[0-9]*/student"]
    for name in tasks:
        command += ["--task", str(out / f"{name}-{part}.yaml")]
    run(command + (["--reference", reference] if reference else []))


def ship(student: Path, to: Path, init: str | None) -> None:
    """Copy a student folder for shipping: weights in half precision, and no path of this machine in its recipe.

    init: the name under which the student is shipped that this one started from
    """
    with replacing_folder(to) as folder:
        for file in sorted(student.iterdir()):
            if file.suffix == ".safetensors":
                weights = {name: value.half() for name, value in load_file(file).items()}
                save_file(weights, folder / file.name, metadata={"format": "pt"})
            elif file.name == "recipe.yaml":
                recipe = yaml.safe_load(file.read_text())
                recipe["teacher"]["cache"] = None
                recipe["student"]["init"] = init or recipe["student"]["init"]
                for role in ("speech", "noise", "rooms"):
                    recipe["data"][role] = [_bare(source) for source in recipe["data"][role]]
                write_text(folder / file.name, yaml.safe_dump(recipe, sort_keys=False))
            else:
                write_text(folder / file.name, file.read_text())
    print(f"{to}: {sum(f.stat().st_size for f in to.iterdir()) / 1e6:.1f} MB")


def _bare(source: str) -> str:
    path = Path(source)
    return path.parent.name if path.name == "manifest.jsonl" else path.name


def run(command: list[str]) -> None:
    print("robustdistiller " + shlex.join(command), flush=True)
    code = subprocess.run([sys.executable, "-m", "robustdistiller", *command]).returncode
    if code:
        sys.exit(code)  # it has said why


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    first = verbs.add_parser("prepare")
    first.add_argument("--data", type=Path, required=True)
    first.add_argument("--espeak", type=Path, help="synthetic voices, for the rows of open speech")
    second = verbs.add_parser("train")
    second.add_argument("rows", nargs="+")
    second.add_argument("--seeds", type=int, nargs="+", default=[0])
    second.add_argument("--steps", type=int, default=600)
    second.add_argument("--teacher", help="another teacher than the shipped mini teacher")
    second.add_argument("--set", dest="settings", action="append", default=[], help="further recipe fields")
    second.add_argument("--tag", default="", help="part of the names of the run folders")
    second.add_argument("--at-once", type=int, default=1, help="runs side by side, on one GPU or on several cores")
    second.add_argument("--seconds", type=float, default=float("inf"), help="then runs are saved and stopped")
    third = verbs.add_parser("evaluate")
    third.add_argument("--models", nargs="+", default=[])
    third.add_argument("--rows", nargs="+", default=[], help="rows, with all their seeds, as one model each")
    third.add_argument("--tasks", nargs="+", default=["keywords"], choices=[*TASKS, "spoken-intents", "speakers"])
    third.add_argument("--part", choices=("valid", "test"), required=True)
    third.add_argument("--reference")
    third.add_argument("--conditions", choices=CONDITIONS, default="all")
    fourth = verbs.add_parser("ship")
    fourth.add_argument("--student", type=Path, required=True)
    fourth.add_argument("--to", type=Path, required=True)
    fourth.add_argument("--init", help="the shipped name of the student that this one started from")
    for verb in (first, second, third):
        verb.add_argument("--out", type=Path, required=True)
    given, more = parser.parse_known_args()
    if more and given.verb != "evaluate":  # there they are options of `robustdistiller evaluate`
        parser.error(f"unknown: {' '.join(more)}")
    if given.verb == "prepare":
        prepare(given.data, given.out, given.espeak)
    elif given.verb == "train":
        train(
            given.rows, given.seeds, given.steps, given.out, given.teacher, given.settings, given.tag,
            given.at_once, given.seconds,
        )  # fmt: skip
    elif given.verb == "ship":
        ship(given.student, given.to, given.init)
    else:
        evaluate(given.models, given.rows, given.tasks, given.part, given.out, given.reference, given.conditions, more)


if __name__ == "__main__":
    main()
