"""The small head on frozen states (SUPERB's protocol), trained on stored features, chosen on validation, once per seed.

states (S, D) of an utterance, already averaged over its frames
  → standardised with the training mean and deviation of each state and dimension
  → weighted sum over the S states, weights learned (softmax)
  → Linear(D, 256) → one Linear(256, classes) per slot.

There is no non-linearity between the frames and the average in SUPERB's linear heads either, so averaging first changes
nothing but the time it takes. For speaker verification the 256 numbers are the embedding, compared by cosine and trained with
the additive-margin softmax (Wang et al. 2018) over the training speakers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..randomness import generator, integer
from .features import StoredFeatures

FORMAT = 1  # raise it when the same features would give another head, or other predictions
WIDTH = 256
MARGIN, SCALE = 0.2, 30.0  # of the additive-margin softmax


# The state weights get a larger learning rate than the rest. A linear head fits the training data from any mixture of
# states, so at a common rate the weights hardly leave 1/S within the epochs that the head needs; measured on keywords with
# Whisper tiny.en (four seeds): 66 % instead of 84 % right in white noise at 0 dB, for no gain in clean speech.
MIX_RATE = 50.0


@dataclass(frozen=True)
class HeadConfig:
    """What is tried; the pair with the best validation result of the first seed is used for all seeds."""

    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    weight_decays: tuple[float, ...] = (1e-2, 1.0)
    batch: int = 64
    epochs: int = 20  # the rate falls linearly to 0 over them, and the last weights are kept
    steps: int = 600  # a small training set gets more epochs, until it makes at least so many steps
    seeds: int = 3


class Mix(nn.Module):
    """The learned weighted sum of standardised states: (…, S, D) → (…, D)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, states: int, size: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(states))
        self.register_buffer("mean", torch.zeros(states, size))
        self.register_buffer("deviation", torch.ones(states, size))

    def fit(self, features: StoredFeatures) -> None:
        """Set mean and deviation from all rows of the training features, streamed."""
        total = square = torch.zeros(())
        count = 0
        for _, rows in features.chunks():
            total, square = total + rows.double().sum(0), square + rows.double().square().sum(0)
            count += len(rows)
        mean = total / count
        self.mean.copy_(mean)
        # A dimension that never changes in training says nothing; a floor keeps it from shouting when noise moves it.
        deviation = (square / count - mean.square()).clamp_min(0).sqrt()
        self.deviation.copy_(torch.maximum(deviation, 0.05 * deviation.mean(-1, keepdim=True)).clamp_min(1e-6))

    def shares(self) -> Tensor:
        """The softmax weights of the states, (S,)."""
        return self.weights.softmax(0)

    def forward(self, states: Tensor) -> Tensor:
        return torch.einsum("...sd,s->...d", (states - self.mean) / self.deviation, self.shares())


class UtteranceHead(nn.Module):
    """Averaged states (B, S, D) → logits per slot [(B, classes), …]."""

    def __init__(self, states: int, size: int, classes: Sequence[int]):
        super().__init__()
        self.mix = Mix(states, size)
        self.project = nn.Linear(size, WIDTH)
        self.answers = nn.ModuleList(nn.Linear(WIDTH, count) for count in classes)

    def forward(self, states: Tensor) -> list[Tensor]:
        hidden = self.project(self.mix(states))
        return [answer(hidden) for answer in self.answers]

    def loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, averaged over utterances and slots; targets (B, slots)."""
        logits = self(states)
        return torch.stack([functional.cross_entropy(x, targets[:, k]) for k, x in enumerate(logits)]).mean()

    def embed(self, states: Tensor) -> Tensor:
        """Unit-length embeddings (B, 256)."""
        return functional.normalize(self.project(self.mix(states)), dim=-1)


class SpeakerHead(UtteranceHead):
    """The same with the additive-margin softmax: only the direction of embeddings and class vectors counts."""

    def loss(self, states: Tensor, targets: Tensor) -> Tensor:
        cosine = self.embed(states) @ functional.normalize(self.answers[0].weight, dim=-1).T  # type: ignore[arg-type]
        margin = MARGIN * functional.one_hot(targets[:, 0], cosine.shape[1])
        return functional.cross_entropy(SCALE * (cosine - margin), targets[:, 0])


Build = Callable[[], nn.Module]
Step = Callable[[nn.Module, NDArray[np.int64]], Tensor]
"""A head and the indices of a batch → the loss."""

Batches = Callable[[int, int], Sequence[NDArray[np.int64]]]
"""(seed, epoch) → the batches of that epoch."""

Validate = Callable[[nn.Module], tuple[float, float]]
"""A head → (what counts, a tie-breaker), more being better in both."""

Tick = Callable[[], None] | None
"""Called for every head that was trained."""


@dataclass
class Trained:
    """A chosen head: its weights, and how the choice went."""

    state: dict[str, Tensor]
    learning_rate: float
    weight_decay: float
    validation: float


def train_heads(
    build: Build, step: Step, batches: Batches, validate: Validate, config: HeadConfig, seed: int, tick: Tick = None
) -> list[Trained]:
    """Train one head per seed: learning rate and weight decay are searched with the first, then kept."""

    def train(number: int, rate: float, decay: float) -> tuple[Trained, tuple[float, float]]:
        done = _train(build, step, batches, validate, config, integer(seed, "head", number), rate, decay)
        if tick:
            tick()
        return done

    trials = [train(0, rate, decay) for rate in config.learning_rates for decay in config.weight_decays]
    best = max(trials, key=lambda trial: trial[1])[0]
    others = (train(k, best.learning_rate, best.weight_decay)[0] for k in range(1, config.seeds))
    return [best, *others]


def _train(
    build: Build,
    step: Step,
    batches: Batches,
    validate: Validate,
    config: HeadConfig,
    seed: int,
    rate: float,
    decay: float,
) -> tuple[Trained, tuple[float, float]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # layers have no other way to be told their initial values
        head = build()
        epochs = max(config.epochs, -(-config.steps // len(batches(seed, 0))))
        steps = [batch for epoch in range(epochs) for batch in batches(seed, epoch)]
        mix = [p for name, p in head.named_parameters() if name == "mix.weights"]
        rest = [p for name, p in head.named_parameters() if name != "mix.weights"]
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": mix, "lr": MIX_RATE * rate, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=decay)
        # Epochs may differ in their number of batches, so the rate falls over all of them together.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / len(steps))
        head.train()
        for batch in steps:
            optimizer.zero_grad(set_to_none=True)
            step(head, batch).backward()
            nn.utils.clip_grad_norm_(rest, 5.0)
            optimizer.step()
            schedule.step()
    head.eval()
    with torch.no_grad():
        result = validate(head)
    state = {name: value.detach().cpu().clone() for name, value in head.state_dict().items()}
    return Trained(state, rate, decay, result[0]), result


def shuffled(count: int, size: int) -> Callable[[int, int], list[NDArray[np.int64]]]:
    """Batches of at most `size` of `count` indices, shuffled by (seed, epoch)."""

    def batches(seed: int, epoch: int) -> list[NDArray[np.int64]]:
        order = generator(seed, "epoch", epoch).permutation(count)
        return [np.sort(order[start : start + size]) for start in range(0, count, size)]

    return batches


def take(features: StoredFeatures, indices: NDArray[np.int64]) -> Tensor:
    """The rows of some utterances of an averaged stream, (B, S, D) float32."""
    return torch.from_numpy(np.asarray(features.rows[indices], dtype=np.float32))


def fit_utterance_heads(
    train: StoredFeatures,
    targets: NDArray[np.int64],
    valid: StoredFeatures,
    valid_targets: NDArray[np.int64],
    classes: Sequence[int],
    config: HeadConfig,
    seed: int,
    tick: Tick = None,
) -> list[Trained]:
    """Heads for classification and slots on averaged features; targets (N, slots) are class indices."""
    valid_truth = torch.from_numpy(valid_targets)

    def validate(head: nn.Module) -> tuple[float, float]:
        right, loss = 0, 0.0
        for part, rows in valid.chunks():
            best = torch.stack([x.argmax(-1) for x in head(rows)], 1)
            right += int((best == valid_truth[part]).all(1).sum())
            loss += float(head.loss(rows, valid_truth[part])) * len(rows)  # type: ignore[operator]
        return right / len(valid), -loss

    return _fit_averaged(UtteranceHead, train, targets, classes, validate, config, seed, tick)


def fit_speaker_heads(
    train: StoredFeatures,
    targets: NDArray[np.int64],
    speakers: int,
    score: Callable[[Tensor], float],
    valid: StoredFeatures,
    config: HeadConfig,
    seed: int,
    tick: Tick = None,
) -> list[Trained]:
    """Embeddings for speaker verification; `score` rates the embeddings (N, 256) of the validation part."""

    def validate(head: nn.Module) -> tuple[float, float]:
        return score(embeddings(head, valid)), 0.0

    return _fit_averaged(SpeakerHead, train, targets, [speakers], validate, config, seed, tick)


def _fit_averaged(
    kind: type[UtteranceHead], train: StoredFeatures, targets: NDArray[np.int64], classes: Sequence[int],
    validate: Validate, config: HeadConfig, seed: int, tick: Tick,
) -> list[Trained]:  # fmt: skip
    truth = torch.from_numpy(targets)

    def step(head: nn.Module, batch: NDArray[np.int64]) -> Tensor:
        rows = torch.from_numpy(np.asarray(train.rows[batch], dtype=np.float32))  # (B, S, D)
        return head.loss(rows, truth[batch])  # type: ignore[operator, no-any-return]

    build = builder(kind, train, classes)
    return train_heads(build, step, shuffled(len(train), config.batch), validate, config, seed, tick)


def builder(kind: Callable[..., nn.Module], train: StoredFeatures, *sizes: Any) -> Callable[[], nn.Module]:
    """Fresh heads ``kind(S, D, *sizes)`` that share one pass over the training features for their mean and deviation."""
    shape = train.rows.shape[1:]
    fitted = Mix(*shape)
    fitted.fit(train)

    def build() -> nn.Module:
        head = kind(*shape, *sizes)
        head.mix.load_state_dict(fitted.state_dict())  # type: ignore[operator, union-attr]
        return head

    return build


def load_head(trained: Trained, kind: Callable[..., nn.Module], shape: Sequence[int], *sizes: Any) -> nn.Module:
    """A head ``kind(S, D, *sizes)`` with its chosen weights; shape is (S, D)."""
    head = kind(*shape, *sizes)
    head.load_state_dict(trained.state)
    return head.eval()


@torch.no_grad()
def predict(head: nn.Module, features: StoredFeatures) -> NDArray[np.int64]:
    """The most likely class of every utterance and slot, (N, slots)."""
    found = [torch.stack([x.argmax(-1) for x in head(rows)], 1) for _, rows in features.chunks()]
    return torch.cat(found).numpy()


@torch.no_grad()
def embeddings(head: nn.Module, features: StoredFeatures) -> Tensor:
    """Speaker embeddings of every utterance, (N, 256)."""
    return torch.cat([head.embed(rows) for _, rows in features.chunks()])  # type: ignore[operator]
