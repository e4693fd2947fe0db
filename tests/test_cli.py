"""The command line as a user meets it: help, one sentence for mistakes and exit code 2, real runs, kills."""

import inspect
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from safetensors.torch import load_file

from robustdistiller import __version__
from robustdistiller.audio.io import write_audio
from robustdistiller.cli import application, main
from robustdistiller.cli.bars import Bars
from robustdistiller.cli.deployment import export_line
from robustdistiller.cli.options import pick_device
from robustdistiller.cli.output import Notes, complain, show_table
from robustdistiller.presets import shipped_folder, shipped_names

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
SMALL = [
    "--set", "data.crop_seconds=1", "--set", "data.batch_seconds=4", "--set", "data.valid_seconds=4",
    "--set", "data.valid_fraction=0.25", "--set", "environment.simulated_rooms=2", "--set", "training.precision=fp32",
]  # fmt: skip


def run(*arguments):
    """The command in a process of its own, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "robustdistiller", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture
def call(monkeypatch, capsys):
    """The console script in this process: call(*arguments, expect=0) → (standard output, standard error)."""

    def call(*arguments, expect=0):
        monkeypatch.setattr(sys, "argv", ["robustdistiller", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code or 0
        out, error = capsys.readouterr()
        assert code == expect, error
        return out, error

    return call


@pytest.fixture(scope="module")
def speech(tmp_path_factory, voice):
    folder = tmp_path_factory.mktemp("speech")
    for number in range(8):
        write_audio(folder / f"s{number // 2}" / f"{number}.wav", voice(1.0 + 0.1 * number, number))
    return folder


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    import numpy as np

    folder = tmp_path_factory.mktemp("noise")
    for number in range(4):
        write_audio(folder / f"n{number}.wav", 0.1 * np.random.default_rng(number).standard_normal(16_000))
    return folder


COMMANDS = typer.main.get_command(application()).commands


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_every_verb_teaches(call, verb):
    for flag in ("--help", "-h"):
        text, _ = call(verb, flag)
        assert "Usage" in text and len(text) > 300


def test_the_first_words_that_a_newcomer_tries_end_well(call):
    assert call("--version")[0].strip() == __version__
    for words in ([], ["-h"], ["--help"]):
        text = call(*words)[0]
        assert "Commands" in text and "Exit codes" in text.replace("\n", " ")
    assert call("recipes", "edge")[0] == (shipped_folder("recipes") / "edge.yaml").read_text()
    assert json.loads(call("recipes", "edge", "--json")[0])["name"] == "edge"
    assert json.loads(call("recipes", "--json")[0]).keys() == set(shipped_names("recipes"))


NUMBERS = ["-1", "0", "true", "nan", "inf", "-inf", "1e308", "1" + 23 * "0"]
MAY_BE = {"--snr": {"-1", "0"}, "--seed": {"0"}, "--save-audio": {"0"}, "--port": {"0"}}  # all else is refused


def numeric_options(verb):
    """The flags of a verb whose values are numbers, by the types of its function."""
    function = COMMANDS[verb].callback
    for name, hint in typing.get_type_hints(inspect.unwrap(function), include_extras=True).items():
        if typing.get_origin(hint) is typing.Annotated:
            kind, option = typing.get_args(hint)[:2]
            if isinstance(option, typer.models.OptionInfo) and re.search(r"\b(int|float)\b", str(kind)):
                flags = [flag for flag in option.param_decls or () if flag.startswith("--")]
                yield (flags or [option.default if isinstance(option.default, str) else f"--{name.replace('_', '-')}"])[
                    0
                ]


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_no_number_out_of_bounds_passes_an_option(call, verb, tmp_path, speech):
    """Every numeric option of every verb; what is refused is refused before anything is written."""
    arguments = {
        "recipe": "smoke",
        "teacher": "mini-hubert",
        "speech": speech / "s0" / "0.wav",
        "student": "mini-robust",
    }
    words = [verb]
    for parameter in COMMANDS[verb].params:
        if parameter.param_type_name == "argument" and parameter.required:
            words.append(arguments.get(parameter.name, speech))
    if verb == "enhance":
        words.append(tmp_path / "out")
    if any("--out" in p.opts for p in COMMANDS[verb].params):
        words += ["--out", tmp_path / "out"]
    words += {"pretrain": ["--data", tmp_path], "demo": ["--task", speech]}.get(verb, [])
    tried = 0
    for flag in numeric_options(verb):
        for number in NUMBERS:
            if number not in MAY_BE.get(flag, ()):
                _, error = call(*words, f"{flag}={number}", expect=2)
                assert len(error.strip().splitlines()) == 1 and not (tmp_path / "out").exists(), (flag, number, error)
                tried += 1
    numeric = {
        "contaminate", "demo", "distill", "evaluate", "latency", "listen", "prepare", "pretrain", "quickstart", "shard",
    }  # fmt: skip
    assert bool(tried) == (verb in numeric)


def test_what_escapes_is_one_sentence_that_names_the_input(call, monkeypatch):
    import robustdistiller.presets as presets

    cases = [
        (MemoryError(), "not enough memory for: recipes x"),
        (RecursionError("deep"), "nested too deeply in: recipes x"),
        (OverflowError("int too large"), "int too large) in: recipes x"),
        (UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates"), "no UTF-8 in: recipes x"),
        (OSError(5, "Input/output error"), "Input/output error) in: recipes x"),
        (OSError(5, "Input/output error", "/a/b"), "/a/b: Input/output error"),
        (OSError(28, "No space left on device"), "disk is full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
        (ZeroDivisionError("oh"), None),
    ]
    for error, sentence in cases:

        def fail(*found, error=error):
            raise error

        monkeypatch.setattr(presets, "find_shipped", fail)
        _, shown = call("recipes", "x", expect=2 if sentence else 1)
        assert (sentence or "please report") in shown
        assert ("Traceback" in shown) == (sentence is None)
        if sentence:
            assert len(shown.strip().splitlines()) == 1
            assert "Traceback" in call("recipes", "x", "--debug", expect=2)[1]


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2> >(exec 0<&-)", ">&- 2>&-", "| head -1"])
def test_no_stream_that_goes_away_ends_the_work(speech, tmp_path, redirection):
    out = tmp_path / "m.jsonl"
    command = f"{sys.executable} -m robustdistiller prepare {speech} --out {out} --workers 2 {redirection}"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0 and len(out.read_text().splitlines()) == 8


def test_names_that_are_no_utf_8_and_a_plain_locale_are_no_fault(speech, tmp_path):
    folder = os.fsencode(tmp_path / "in")
    shutil.copytree(speech, tmp_path / "in")
    os.rename(folder + b"/s0/0.wav", folder + b"/s0/caf\xe9.wav")
    for locale in ("C", "C.UTF-8"):
        out = tmp_path / f"{locale}.jsonl"
        done = subprocess.run(
            [sys.executable, "-m", "robustdistiller", "prepare", folder, "--out", out, "--workers", "1"],
            env={**ENVIRONMENT, "LC_ALL": locale}, capture_output=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
        assert len(out.read_text(encoding="utf-8").splitlines()) == 7


def test_workers_die_with_the_command_and_ctrl_c_is_one_line(tmp_path, voice):
    for number in range(300):
        write_audio(tmp_path / "in" / f"{number}.wav", voice(1.0, number % 5))
    for sent, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = subprocess.Popen(
            [sys.executable, "-m", "robustdistiller", "prepare", tmp_path / "in", "--out", tmp_path / "m.jsonl",
             "--workers", "2"],
            env={**ENVIRONMENT, "PYTHONFAULTHANDLER": ""}, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None and not (workers := children.read_text().split()):
            time.sleep(0.005)
        if process.poll() is not None:
            continue  # faster than we could look
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)
        else:
            process.send_signal(sent)
        error = process.communicate(timeout=60)[1]
        assert process.returncode in (code, 0) and "Traceback" not in error, error
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{worker}/exe").exists() for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_nothing_of_the_user_is_destroyed(call, speech, noise, checkpoint, tmp_path):
    """The cases in which data were lost, verb by verb."""
    wav = speech / "s0" / "0.wav"
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "good.ckpt").write_bytes(b"weights")
    call("import", keep / "good.ckpt", keep, expect=2)
    call("import", keep / "good.ckpt", keep, "--overwrite", expect=2)
    assert (keep / "good.ckpt").read_bytes() == b"weights"
    before = {file: file.read_bytes() for folder in (speech, noise) for file in folder.rglob("*.wav")}
    call("contaminate", wav, "--noise", noise, "--out", noise / "n0.wav", "--overwrite", expect=2)
    call("prepare", speech, "--out", wav, "--overwrite", expect=2)
    (tmp_path / "cc.json").write_text('{"mine": 1}')
    call("contaminate", wav, "--noise", "white", "--out", tmp_path / "cc.wav", "--overwrite", expect=2)
    assert (tmp_path / "cc.json").read_text() == '{"mine": 1}'
    os.mkfifo(tmp_path / "pipe.jsonl")
    call("prepare", speech, "--out", tmp_path / "pipe.jsonl", expect=2)
    assert (tmp_path / "pipe.jsonl").is_fifo()
    run = tmp_path / "run"
    shutil.copytree(checkpoint("hubert"), run / "student")
    for resume in ([], ["--resume"]):
        _, error = call(
            "distill", "smoke", "--teacher", run / "student", "--speech", speech, "--out", run, *resume, expect=2
        )
        assert "would replace the input" in error
    (tmp_path / "recipe.yaml").write_text("name: mine")
    _, error = call(
        "distill", tmp_path / "recipe.yaml", "--teacher", "x", "--speech", speech, "--out", tmp_path, expect=2
    )
    assert "recipe.yaml" in error and (tmp_path / "recipe.yaml").read_text() == "name: mine"
    _, error = call("latency", "mini-edge", "--plot", "x.exe", "--benchmark", "b.json", expect=2)
    assert ".png" in error
    (tmp_path / "plot.png").write_bytes(b"a photo")
    call("latency", "mini-edge", "--plot", tmp_path / "plot.png", "--benchmark", "b.json", "--overwrite", expect=2)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results.csv").write_text("mine")
    call("evaluate", "log-mel", "--speech", speech, "--out", tmp_path / "results", expect=2)
    call("export", "mini-edge", "--out", tmp_path / "results", "--overwrite", expect=2)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "shards.json").write_text("mine")
    call("shard", speech, "--out", tmp_path / "shards", expect=2)
    assert (tmp_path / "shards" / "shards.json").read_text() == "mine"
    _, error = call("quickstart", "--out", keep, expect=2) if (keep / "corpus").mkdir() is None else None
    assert "corpus is there already" in error
    assert {file: file.read_bytes() for file in before} == before


def test_a_report_loses_no_model_without_being_told(call, tmp_path):
    (tmp_path / ".robustdistiller").write_text("evaluate\n")
    about = {"format": 1, "models": [{"name": "edge", "num_parameters": 1, "states": []}], "tasks": [], "conditions": [],
             "averages": {}, "settings": {"reference": "edge"}, "notes": []}  # fmt: skip
    (tmp_path / "benchmark.json").write_text(json.dumps(about))
    _, error = call("evaluate", "log-mel", "--speech", tmp_path, "--out", tmp_path, expect=2)
    assert "has edge, which this command leaves out" in error


def test_markup_and_escapes_of_strangers_are_shown_not_obeyed(call, capsys):
    show_table(["model"], [["[/evil] \x1b[31m"], ["a" * 200]], "[bold]task\x1b[0m :smile:")
    with Bars() as bars:
        bars.show("[/evil]\x1b", 1, 2, "[red]")
        bars.line("[/nothing] \x1b[2J")
    complain("[/evil] \x1b]0;title\x07")
    out, error = capsys.readouterr()
    assert "\x1b" not in out + error
    assert "[/evil] \\x1b[31m" in out and "[bold]task\\x1b[0m :smile:" in out and "a" * 200 in out
    assert "[/nothing] \\x1b[2J" in error and "[/evil] \\x1b]0;title\\x07" in error


def test_every_flag_that_the_documents_name_exists():
    every = {opt for command in COMMANDS.values() for p in command.params for opt in p.opts}
    every |= {"--version", "--verbose", "--debug", "--help", "--nproc_per_node"}
    root = Path(__file__).parents[1]
    for script in [*root.glob("benchmarks/**/*.py"), *root.glob("tests/reliability/*.py")]:
        every |= set(re.findall(r"""add_argument\(\s*"(--[\w-]+)""", script.read_text(encoding="utf-8")))
    for file in [
        root / "README.md",
        *sorted((root / "docs").glob("*.md")),
        *sorted((root / "recipes").rglob("*.yaml")),
    ]:
        text = re.sub(r"\\\n", " ", file.read_text(encoding="utf-8"))
        for command in re.findall(rf"robustdistiller ((?:{'|'.join(COMMANDS)})\b[^`|#\n]*)", text):
            known = {opt for p in COMMANDS[command.split()[0]].params for opt in p.opts} | {"--help"}
            for flag in re.findall(r"(?<=\s)--[a-z][\w-]*", command):
                assert flag in known, f"{file.name}: {command}"
        for flag in re.findall(r"`(--[a-z][\w-]*)", text):
            assert flag in every, f"{file.name}: {flag}"


def test_the_command_line_waits_for_nothing_heavy():
    heavy = ("torch", "numpy", "transformers", "pydantic", "rich.progress")
    code = f"import sys, robustdistiller.cli; assert not [n for n in {heavy} if n in sys.modules]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mistakes_are_one_sentence_with_exit_code_2(call, tmp_path):
    cases = [
        (["distill", "nope", "--out", tmp_path / "a"], "There is no recipe nope"),
        (["distill", "smoke", "--out", tmp_path / "a", "--set", "training.stps=1"], "Did you mean 'steps'?"),
        (
            ["distill", "smoke", "--out", tmp_path / "a", "--speech", tmp_path / "none", "--teacher", "mini-hubert"],
            "does not exist",
        ),
        (["distill", "smoke", "--out", tmp_path / "a", "--speech", tmp_path, "--teacher", "mini-hubert"], "no audio"),
        (
            ["contaminate", tmp_path, "--noise", "white", "--out", tmp_path / "b.wav"],
            "is a folder: give one of its files",
        ),
        (["prepare", f"{tmp_path}x", "--out", tmp_path / "c.jsonl"], f"Did you mean '{tmp_path.name}'?"),
        (["listn"], "Did you mean 'listen'? See"),
        (["enhance", tmp_path, "a.wav", "b.wav"], "no config.json"),
        (["contaminate", tmp_path / "none.wav", "--noise", "white", "--out", tmp_path / "b.wav"], "does not exist"),
    ]
    for arguments, message in cases:
        _, error = call(*arguments, expect=2)
        assert message in error and len(error.strip().splitlines()) == 1, error


def test_the_whole_way_from_folders_to_enhanced_speech(call, checkpoint, speech, noise, tmp_path):
    out, plan = call(
        "distill", "smoke", "--teacher", checkpoint("hubert"), "--speech", speech, "--noise", noise, "--out", tmp_path / "run",
        "--steps", 4, *SMALL,
    )  # fmt: skip
    assert "student:" in out and "SI-SDR" in out
    assert (
        "h of speech" in plan
        and "teacher" in plan
        and "an epoch" in plan
        and "3 noise recordings and white noise" in plan
    )
    assert plan.count("validation rests on 2 recordings") == 1 and "held-out distillation loss" in plan
    assert "training loss (distillation + enhancement)" in plan
    student = tmp_path / "run" / "student"
    call("enhance", student, speech / "s0" / "0.wav", tmp_path / "clean.wav")
    assert (tmp_path / "clean.wav").is_file()
    told, _ = call("features", student, speech, "--out", tmp_path / "features")
    assert "8 of 8 files, 0.2 min of audio" in told
    assert (tmp_path / "features" / "s3" / "7.npz").is_file()
    heard = ["contaminate", speech / "s0" / "0.wav", "--noise", noise, "--rooms", "simulated", "--snr", 5, "--seed", 1]
    scenes = [json.loads(call(*heard, "--out", tmp_path / name)[0]) for name in ("one.wav", "two.wav")]
    assert scenes[0] == scenes[1] and scenes[0]["snr_db"] == 5 and scenes[0]["kind"] == "both"
    assert (tmp_path / "one.wav").read_bytes() == (tmp_path / "two.wav").read_bytes()
    call("prepare", speech, "--out", tmp_path / "manifest.jsonl")
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 8
    told = [call("shard", speech, "--out", tmp_path / "shards", "--shard-mb", 0.08)[0] for _ in range(2)]
    assert "(0 were there), 8 recordings" in told[0] and "(0 were there)" not in told[1]


def test_without_labels_there_is_a_table_and_the_bar_ends(call, speech, tmp_path):
    out, error = call("evaluate", "log-mel", "--speech", speech, "--out", tmp_path / "results", "--save-audio", 0)
    assert "similarity" in out and re.search(r"log-mel +0\.\d{3} +0\.\d{3}", out)
    steps = re.findall(r"(\d+)/(\d+)", error)[-1]
    assert steps[0] == steps[1]


def test_every_verb_that_computes_can_be_told_where(call, speech, tmp_path):
    for words in (
        ["features", "mini-robust", speech, "--out", tmp_path / "a"],
        ["enhance", "mini-robust", speech, tmp_path / "b"],
        ["evaluate", "log-mel", "--speech", speech, "--out", tmp_path / "c"],
        ["distill", "mini-robust", "--speech", speech, "--out", tmp_path / "d"],
    ):
        for device in ("gpu", "cuda:99", "meta"):
            _, error = call(*words, "--device", device, expect=2)
            assert f"no device '{device}'" in error
    assert pick_device("cpu").type == "cpu" and pick_device("auto").type in ("cpu", "cuda")


def test_a_note_is_not_said_twice_in_a_row(capsys):
    notes = Notes()
    for sentence in ("one", "one", "two", "one"):
        notes.emit(logging.LogRecord("a", logging.INFO, "", 1, sentence, None, None))
    assert capsys.readouterr().err.split() == ["note:", "one", "note:", "two", "note:", "one"]


def test_what_an_accuracy_was_measured_on_is_said():
    measured = SimpleNamespace(error=1e-6, seconds=3, cosine=(), lowest=1.0, agreement=1.0, spared="",
                               accuracy={"fp32": 0.84, "int8": 0.85})  # fmt: skip
    file = SimpleNamespace(
        path="a.onnx", bytes=1, description=SimpleNamespace(precision="int8"), measured=measured, short=None
    )
    line = export_line(file)
    assert "100.0% on the calibration's held-out speech" in line and "in int8 on the task's validation part" in line


def distill_command(checkpoint, speech, out, *more):
    return [
        "distill", "smoke", "--teacher", str(checkpoint("hubert")), "--speech", str(speech), "--out", str(out), *SMALL,
        "--set", "training.steps=12", "--set", "training.save_every=2", "--set", "training.valid_every=6", *more,
    ]  # fmt: skip


def final_weights(out):
    return load_file(sorted((out / "checkpoints").glob("step-*"))[-1] / "model.safetensors")


def assert_equal(one, other):
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_weights_of_one_that_was_not(checkpoint, speech, tmp_path):
    run(*distill_command(checkpoint, speech, tmp_path / "straight"))
    command = distill_command(checkpoint, speech, tmp_path / "killed", "--resume")
    kills = 0
    for delay in (0.0, 0.3, 0.05, 0.6, 0.2):
        process = subprocess.Popen(
            [sys.executable, "-m", "robustdistiller", *command],
            env=ENVIRONMENT,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        seen = len(list((tmp_path / "killed").glob("checkpoints/*")))
        deadline = time.monotonic() + 120
        while process.poll() is None and len(list((tmp_path / "killed").glob("checkpoints/*"))) <= seen:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(delay)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 2
    run(*command)
    assert_equal(final_weights(tmp_path / "killed"), final_weights(tmp_path / "straight"))


def test_a_polite_stop_saves_and_says_how_to_go_on(checkpoint, speech, tmp_path):
    command = distill_command(checkpoint, speech, tmp_path / "run", "--set", "training.steps=100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "robustdistiller", *command], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("checkpoints/step-*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "--resume" in error and "Traceback" not in error
    assert (sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1] / "progress.json").is_file()
