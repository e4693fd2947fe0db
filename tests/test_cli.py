"""The command line as a user meets it: help, one sentence for mistakes and exit code 2, real runs, kills, two processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from robustdistiller.audio.io import write_audio
from robustdistiller.cli import main

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
SMALL = [
    "--set", "data.crop_seconds=1", "--set", "data.batch_seconds=4", "--set", "data.valid_seconds=4",
    "--set", "data.valid_fraction=0.25", "--set", "environment.simulated_rooms=2", "--set", "training.precision=fp32",
]  # fmt: skip


def run(*arguments, program=("-m", "robustdistiller")):
    """The command in a process of its own, which must succeed."""
    done = subprocess.run(
        [sys.executable, *program, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT, timeout=240
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


@pytest.mark.parametrize(
    "verb",
    [
        "distill",
        "contaminate",
        "enhance",
        "features",
        "prepare",
        "shard",
        "recipes",
        "evaluate",
        "quickstart",
        "pretrain",
    ],
)
def test_every_verb_teaches(call, verb):
    text, _ = call(verb, "--help")
    assert "Usage" in text and len(text) > 300 - 150 * (verb == "recipes")


def test_mistakes_are_one_sentence_with_exit_code_2(call, tmp_path):
    cases = [
        (["distill", "nope", "--out", tmp_path / "a"], "There is no recipe nope"),
        (["distill", "smoke", "--out", tmp_path / "a", "--set", "training.stps=1"], "Did you mean 'steps'?"),
        (
            ["distill", "smoke", "--out", tmp_path / "a", "--speech", tmp_path / "none", "--teacher", "x"],
            "does not exist",
        ),
        (["distill", "smoke", "--out", tmp_path / "a", "--speech", tmp_path, "--teacher", "x"], "no audio"),
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
    assert "h of speech" in plan and "teacher" in plan and "about" in plan
    student = tmp_path / "run" / "student"
    call("enhance", student, speech / "s0" / "0.wav", tmp_path / "clean.wav")
    assert (tmp_path / "clean.wav").is_file()
    call("features", student, speech, "--out", tmp_path / "features")
    assert (tmp_path / "features" / "s3" / "7.npz").is_file()
    heard = ["contaminate", speech / "s0" / "0.wav", "--noise", noise, "--rooms", "simulated", "--snr", 5, "--seed", 1]
    scenes = [json.loads(call(*heard, "--out", tmp_path / name)[0]) for name in ("one.wav", "two.wav")]
    assert scenes[0] == scenes[1] and scenes[0]["snr_db"] == 5 and scenes[0]["kind"] == "both"
    assert (tmp_path / "one.wav").read_bytes() == (tmp_path / "two.wav").read_bytes()
    call("prepare", speech, "--out", tmp_path / "manifest.jsonl")
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 8
    told = [call("shard", speech, "--out", tmp_path / "shards", "--shard-mb", 0.08)[0] for _ in range(2)]
    assert "(0 were there), 8 recordings" in told[0] and "(0 were there)" not in told[1]


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


def test_two_processes_give_the_losses_of_one(checkpoint, speech, tmp_path):
    still = ["--set", "student.dropout=0", "--set", "objectives.enhancement.dropout=0", "--set", "training.log_every=1"]
    still += ["--steps", "4", "--set", "data.batch_seconds=6"]
    run(*distill_command(checkpoint, speech, tmp_path / "one", *still))
    halves = [*still, "--set", "data.batch_seconds=3"]
    run(
        "--standalone", "--nproc_per_node", 2, "-m", "robustdistiller",
        *distill_command(checkpoint, speech, tmp_path / "two", *halves), program=("-m", "torch.distributed.run"),
    )  # fmt: skip
    curves = []
    for name in ("one", "two"):
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        curves.append(
            {(row["step"], k): v for row in rows for k, v in row.items() if k.endswith(("loss", "contaminated"))}
        )
    assert curves[0].keys() == curves[1].keys() and len(curves[0]) >= 5
    for key, value in curves[0].items():
        assert curves[1][key] == pytest.approx(value, rel=2e-4), key
