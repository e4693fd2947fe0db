"""The method whole, in one loop: a student that is given noisy speech learns the clean hidden layers of its teacher.

    python examples/minimal_distill.py                                  (synthetic speech, the shipped teacher: a minute)
    python examples/minimal_distill.py --teacher facebook/hubert-base-ls960 --speech LibriSpeech/ --noise musan/noise \
        --rooms RIRS_NOISES/ --steps 200000 --device cuda

This is RobustDistiller (ICASSP 2023, arXiv 2302.09437) without what a long training needs besides: resuming, held-out noise and
rooms, several GPUs, mixed precision, workers that read ahead. For those: `robustdistiller distill --recipe robust-hubert-base`.
Shapes: B utterances, T samples at 16 kHz, F frames of 20 ms, L target layers, D the teacher's hidden size.
"""

from __future__ import annotations

from robustdistiller.process import prepare_process

prepare_process()  # before torch is imported

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from robustdistiller import Contaminator, EnvironmentConfig, Recording, Student, Teacher, load_teacher
from robustdistiller.audio.prepare import prepare_all
from robustdistiller.config import EnhancementConfig, StudentConfig
from robustdistiller.models.building import build_student
from robustdistiller.models.frames import mask_from_lengths
from robustdistiller.objectives.distillation import l1, log_sigmoid_cosine
from robustdistiller.objectives.enhancement import enhancement_loss
from robustdistiller.synthetic.spoken import Size, build_corpus

ENHANCEMENT = EnhancementConfig(hidden=64, layers=1)  # the paper's head: hidden=256, layers=3


def find_speech(sources: Sequence[str], folder: Path) -> tuple[list[Recording], list[Recording]]:
    """Recordings to train on and a few held-out ones; without sources, synthetic voices read generated sentences."""
    if not sources:
        size = Size(sentences=(24, 6), utterances=(0, 0, 0), speakers=(16, 4, 1))
        sources = [str(build_corpus(folder, size=size, parts=("speech",)).speech)]
    recordings = prepare_all(sources, "speech").recordings
    held_out = [recording for recording in recordings if recording.split == "valid"] or recordings[-8:]
    return [recording for recording in recordings if recording not in held_out], held_out[:8]


def load_batch(recordings: Sequence[Recording], seconds: float, device: str) -> tuple[Tensor, Tensor]:
    """Random crops of at most `seconds`, padded with zeros to (B, T), and the valid samples of each, (B,)."""
    waves = []
    for recording in recordings:
        spare = max(0.0, recording.seconds - seconds)
        waves.append(torch.from_numpy(recording.load(torch.rand(()).item() * spare, seconds)))
    lengths = torch.tensor([len(wave) for wave in waves])
    return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True).to(device), lengths.to(device)


def loss_of(student: Student, teacher: Teacher, clean: Tensor, noisy: Tensor, lengths: Tensor) -> Tensor:
    """Distance to the layers plus λ times that of the spectrograms (docs/method.md), over the valid frames of the batch."""
    target = teacher(clean, lengths)  # hidden (B, L, F, D): layers 4, 8 and 12 of clean speech; no gradient
    output = student(noisy, lengths)  # predictions (B, L, F, D), one linear head for each layer
    assert output.predictions is not None and output.enhancement is not None
    distance = l1(output.predictions, target.hidden, target.lengths)  # (B, L)
    angle = log_sigmoid_cosine(output.predictions, target.hidden, target.lengths)  # (B, L)
    restored = enhancement_loss(output.enhancement, clean)  # (B,): the clean magnitude spectrogram
    total = (distance + angle).mean(1) + ENHANCEMENT.weight * restored
    return (total * target.lengths).sum() / target.lengths.sum()


@torch.no_grad()
def similarity(student: Student, teacher: Teacher, clean: Tensor, noisy: Tensor, lengths: Tensor) -> float:
    """Mean cosine between what the student predicts from noisy speech and the teacher's layers of clean speech; at most 1."""
    student.eval()
    target, predictions = teacher(clean, lengths), student(noisy, lengths, enhance=False).predictions
    student.train()
    cosine = cosine_similarity(predictions, target.hidden, dim=-1).mean(1)  # (B, F)
    return float(cosine[mask_from_lengths(target.lengths, cosine.shape[1])].mean())


def train(options: argparse.Namespace) -> tuple[float, float]:
    """Distil into the folder `options.out`; the similarity on held-out speech before and after."""
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        recordings, held_out = find_speech(options.speech, Path(folder))

        # The teacher is frozen. The student starts from its front end and its first two layers, with heads beside them.
        teacher = load_teacher(options.teacher, device=options.device)
        student, origin = build_student(teacher, StudentConfig(layers=2), ENHANCEMENT, options.seed)
        student.to(options.device).train()
        print(
            f"teacher {teacher.num_parameters / 1e6:.1f} M -> student {student.num_parameters / 1e6:.1f} M ({origin})"
        )

        # A quarter each of clean, noise, reverberation and both, at 0 to 20 dB SNR; without sources, white noise and simulated
        # rooms. What is drawn depends on the seed and an utterance's key alone.
        environment = EnvironmentConfig(simulated_rooms=options.simulated_rooms)
        contaminate = Contaminator(environment, options.noise, options.rooms, seed=options.seed)
        valid, valid_lengths = load_batch(held_out, options.seconds, options.device)
        noisy = contaminate(valid, valid_lengths, keys=[recording.id for recording in held_out])
        test = (valid, noisy, valid_lengths)
        before = similarity(student, teacher, *test)

        optimiser = torch.optim.AdamW(student.parameters(), lr=options.learning_rate, betas=(0.9, 0.98))
        warmup = max(1, round(0.07 * options.steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min((step + 1) / warmup, (options.steps - step) / max(1, options.steps - warmup))
        )
        for step in range(options.steps):
            drawn = torch.randint(len(recordings), (options.batch,)).tolist()
            clean, lengths = load_batch([recordings[k] for k in drawn], options.seconds, options.device)
            noisy = contaminate(clean, lengths)  # (B, T): the same speech, as it arrives at a microphone
            loss = loss_of(student, teacher, clean, noisy, lengths)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 15.0)
            optimiser.step()
            schedule.step()
            if step % max(1, options.steps // 10) == 0:
                print(f"step {step}: loss {loss.item():.3f}")

    student.eval().save(options.out)  # opens with robustdistiller.load_student and transformers.AutoModel
    after = similarity(student, teacher, *test)
    print(
        f"held-out speech, contaminated: cosine to the teacher's clean layers {before:.3f} -> {after:.3f}; {options.out}"
    )
    return before, after


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", default="mini-hubert", help="a hub name, a folder, or the shipped mini-hubert")
    parser.add_argument("--speech", nargs="*", default=[], help="folders, corpora or manifests; none: synthetic voices")
    parser.add_argument("--noise", nargs="*", default=[], help="the same of noise; none: white noise")
    parser.add_argument("--rooms", nargs="*", default=[], help="of room impulse responses; none: simulated rooms")
    parser.add_argument("--simulated-rooms", type=int, default=8)
    parser.add_argument("--out", default="runs/minimal", help="the student folder")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=6, help="utterances of a step (paper: 24)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each crop (paper: 15.6)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="at its peak (paper: 2e-4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    train(parse())
