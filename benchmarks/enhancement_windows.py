"""Does it matter on which windows the enhancement head learns? Its loss on whole utterances that were held out.

    python benchmarks/enhancement_windows.py SPEECH NOISE ROOMS --windows 0 1.28 0.64 0.32 --seeds 0 1

The head alone (three layers of 128 a direction), on the projected CNN output of the shipped mini teacher for contaminated
speech: 8 crops of 2.2 s a step, evaluated over 40 utterances of up to 4 s. Window 0: whole crops, as in the paper.
"""

from __future__ import annotations

from robustdistiller.process import prepare_process

prepare_process()  # before torch is imported

import argparse
import time

import numpy as np
import torch
from torch import Tensor

from robustdistiller import EnvironmentConfig, contaminate, load_teacher
from robustdistiller.acoustics.environment import Environment
from robustdistiller.audio.io import SAMPLE_RATE, find_audio, probe, read_audio
from robustdistiller.audio.manifest import Recording
from robustdistiller.config import NoiseMix
from robustdistiller.models.heads import EnhancementHead
from robustdistiller.objectives.enhancement import enhancement_loss

FRAMES = 109  # of a crop
Utterance = tuple[Tensor, Tensor, Tensor]  # clean (T,), contaminated (T,), features (F, D)


def material(options: argparse.Namespace) -> list[Utterance]:
    """Utterances longer than a crop, contaminated, with their features."""

    def found(folder: str) -> list[Recording]:
        return [
            Recording(f"{file.parent.name}-{file.stem}", str(file), probe(file).seconds) for file in find_audio(folder)
        ]

    speech = [recording for recording in found(options.speech) if recording.seconds > 2.4]
    mix = EnvironmentConfig(noise_kinds=NoiseMix(recorded=1, white=0.2), clean=0.1, noise=0.4, reverb=0.2, both=0.3)
    environment = Environment.build(mix, noise=found(options.noise), rooms=found(options.rooms))
    np.random.default_rng(0).shuffle(speech)  # type: ignore[arg-type]
    teacher, utterances = load_teacher("mini-hubert"), []
    for recording in speech[:220]:
        clean = read_audio(recording.path, seconds=4.0)
        noisy = torch.from_numpy(contaminate(clean, environment, recording.id)[0])
        utterances.append((torch.from_numpy(clean), noisy, teacher.states(noisy[None])[0][0, 0]))
    return utterances


def learn(utterances: list[Utterance], window: float, seed: int, steps: int) -> float:
    """The mean loss over the last 40 utterances after so many steps on the others."""
    torch.manual_seed(seed)
    random, train, held_out = np.random.default_rng(seed), utterances[:-40], utterances[-40:]
    head = EnhancementHead(train[0][2].shape[1], 128, 3, window_seconds=window)
    optimiser = torch.optim.AdamW(head.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: min(1, (k + 1) / 40) * (1 - k / steps))
    samples = 320 * FRAMES + 80
    for _ in range(steps):
        crops = []
        for number in random.integers(len(train), size=8):
            clean, noisy, features = train[number]
            first = int(random.integers(len(features) - FRAMES + 1))
            part = slice(320 * first, 320 * first + samples)
            crops.append((clean[part], noisy[part], features[first : first + FRAMES]))
        clean, noisy, features = (torch.stack(parts) for parts in zip(*crops, strict=True))
        estimate = head(features, torch.full((8,), FRAMES), noisy, torch.full((8,), samples))
        enhancement_loss(estimate, clean).mean().backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    head.eval()
    with torch.no_grad():
        losses = [
            enhancement_loss(head(f[None], torch.tensor([len(f)]), x[None], torch.tensor([len(x)])), c[None])
            for c, x, f in held_out
        ]
    return float(torch.cat(losses).mean())


def main() -> None:
    """Learn in each way, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("speech", "noise", "rooms"):
        parser.add_argument(name, help="a folder of recordings")
    parser.add_argument("--windows", type=float, nargs="+", default=[0, 1.28, 0.64, 0.32], help="seconds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    utterances = material(options)
    print(
        f"{len(utterances)} utterances, {sum(len(c) for c, _, _ in utterances) / SAMPLE_RATE:.0f} s, {options.steps} steps"
    )
    for seed in options.seeds:
        for window in options.windows:
            begin = time.process_time()
            loss = learn(utterances, window, seed, options.steps)
            print(f"seed {seed}, window {window:g} s: {loss:.4f} ({time.process_time() - begin:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
