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
from torch.func import stack_module_state
from torch.nn import functional

from ..randomness import generator, integer
from .features import StoredFeatures

FORMAT = 1  # raise it when the same features would give another head, or other predictions
WIDTH = 256
MARGIN, SCALE = 0.2, 30.0  # of the additive-margin softmax
BETAS = 0.9, 0.999  # of AdamW


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
        for _, chunk in features.chunks():
            rows = chunk.flatten(0, -3).double()
            total, square = total + rows.sum(0), square + rows.square().sum(0)
            count += len(rows)
        mean = total / count
        self.mean.copy_(mean)
        # A dimension that never changes in training says nothing; a floor keeps it from shouting when noise moves it.
        deviation = (square / count - mean.square()).clamp_min(0).sqrt()
        self.deviation.copy_(torch.maximum(deviation, 0.05 * deviation.mean(-1, keepdim=True)).clamp_min(1e-6))

    def shares(self) -> Tensor:
        """The softmax weights of the states, (S,)."""
        return self.weights.softmax(0)

    def standardised(self, states: Tensor) -> Tensor:
        """(…, S, D) → (…, S, D)."""
        return (states - self.mean) / self.deviation

    def forward(self, states: Tensor) -> Tensor:
        return torch.einsum("...sd,s->...d", self.standardised(states), self.shares())


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

    def embed(self, states: Tensor) -> Tensor:
        """Unit-length embeddings (B, 256)."""
        return functional.normalize(self.project(self.mix(states)), dim=-1)

    def losses(self, weights: Weights, states: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of C heads that share this one's standardisation, averaged over utterances and slots.

        Args:
            weights: The parameters of the heads, each stacked to (C, …).
            states: (C, B, S, D), or (1, B, S, D) for all heads.
            targets: Class indices (C, B, slots) or (1, B, slots).

        Returns:
            (C,)
        """
        mixed, project, bias = self._stacked(weights, states)
        answers, offsets = ([weights[f"answers.{k}.{name}"] for k in range(len(self.answers))]
                            for name in ("weight", "bias"))  # fmt: skip
        answer, offset = torch.cat(answers, 1), torch.cat(offsets, 1)[:, None]
        # Nothing stands between the two layers, so whichever product is the smaller one comes first.
        few = answer.shape[1] < mixed.shape[1]
        logits = mixed @ (answer @ project).mT if few else (mixed @ project.mT) @ answer.mT  # (C, B, all classes)
        parts = (logits + bias @ answer.mT + offset).split([answer.shape[1] for answer in answers], -1)
        return torch.stack([cross_entropies(x, targets[..., k]) for k, x in enumerate(parts)]).mean(0)

    def _stacked(self, weights: Weights, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mixed states (C, B, D), and weight (C, 256, D) and bias (C, 1, 256) of the first layer."""
        shares = weights["mix.weights"].softmax(1)
        states = self.mix.standardised(states)
        if len(states) == 1:  # (B, C, S) · (B, S, D): einsum would copy the states
            mixed = shares.expand(states.shape[1], *shares.shape).bmm(states[0]).transpose(0, 1)
        else:
            mixed = (shares[:, None, None] @ states)[:, :, 0]
        return mixed, weights["project.weight"], weights["project.bias"][:, None]


class SpeakerHead(UtteranceHead):
    """The same with the additive-margin softmax: only the direction of embeddings and class vectors counts."""

    def losses(self, weights: Weights, states: Tensor, targets: Tensor) -> Tensor:
        mixed, project, bias = self._stacked(weights, states)
        embedded = functional.normalize(mixed @ project.mT + bias, dim=-1)
        cosine = embedded @ functional.normalize(weights["answers.0.weight"], dim=-1).mT
        margin = MARGIN * functional.one_hot(targets[..., 0], cosine.shape[-1])
        return cross_entropies(SCALE * (cosine - margin), targets[..., 0])


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (C, B, K) and class indices (C, B) or (1, B) → the mean over the utterances, (C,)."""
    loss = functional.cross_entropy(logits.flatten(0, 1), targets.expand(len(logits), -1).flatten(), reduction="none")
    return loss.view(len(logits), -1).mean(1)


Weights = dict[str, Tensor]

Cell = tuple[int, float, float]
"""The number of a seed, a learning rate and a weight decay."""

Build = Callable[[], nn.Module]

Losses = Callable[[nn.Module, Weights, NDArray[np.int64]], Tensor]
"""The first of C heads, the parameters of all stacked to (C, …), and the batch of each or one for all, (C, B) or (1, B)
indices → the loss of each, (C,)."""

Batches = Callable[[int, int], Sequence[NDArray[np.int64]]]
"""(seed, epoch) → the batches of that epoch."""

Validate = Callable[[nn.Module], tuple[float, float]]
"""A head → (what counts, a tie-breaker), more being better in both."""

Tick = Callable[[], None] | None
"""Called for every head that was trained."""


@dataclass
class Trained:
    """A chosen head: its weights, and how the choice went."""

    state: Weights
    learning_rate: float
    weight_decay: float
    validation: float


def train_heads(
    build: Build, losses: Losses, batches: Batches, validate: Validate, config: HeadConfig, seed: int,
    tick: Tick = None, stacked: bool = True,
) -> list[Trained]:  # fmt: skip
    """Train one head per seed: learning rate and weight decay are searched with the first, then kept.

    Heads learn side by side, as one stack of weights, since a step of one is too small to be worth its overhead; with
    ``stacked=False`` one after the other, and `losses` uses the head itself.
    """
    cells = [(0, rate, decay) for rate in config.learning_rates for decay in config.weight_decays]

    def train(cells: Sequence[Cell]) -> list[tuple[Trained, tuple[float, float]]]:
        stacks = [cells] if stacked else [[cell] for cell in cells]
        done = [pair for stack in stacks if stack
                for pair in _train(build, losses, batches, validate, config, seed, stack, stacked)]  # fmt: skip
        if tick is not None:
            for _ in done:
                tick()
        return done

    best = max(train(cells), key=lambda trial: trial[1])[0]
    others = train([(k, best.learning_rate, best.weight_decay) for k in range(1, config.seeds)])
    return [best, *(head for head, _ in others)]


def _train(
    build: Build, losses: Losses, batches: Batches, validate: Validate, config: HeadConfig, seed: int,
    cells: Sequence[Cell], stacked: bool,
) -> list[tuple[Trained, tuple[float, float]]]:  # fmt: skip
    """The heads of some cells of the grid with their validation results."""
    seeds = [integer(seed, "head", number) for number, _, _ in cells]
    heads = []
    with torch.random.fork_rng(devices=[]):
        for own in seeds:
            torch.manual_seed(own)  # layers have no other way to be told their initial values
            heads.append(build())
        weights: Weights = stack_module_state(heads)[0] if stacked else dict(heads[0].named_parameters())  # type: ignore[arg-type]
        epochs = max(config.epochs, -(-config.steps // len(batches(seeds[0], 0))))
        # Heads of one seed see the same batches, which are drawn and read once for all of them.
        drawn = [[batch for epoch in range(epochs) for batch in batches(own, epoch)] for own in dict.fromkeys(seeds)]
        heads[0].train()
        steps = [np.stack(batch) for batch in zip(*drawn, strict=True)]
        _descend(weights, lambda batch: losses(heads[0], weights, batch), steps, cells)
    done = []
    for k, (head, (_, rate, decay)) in enumerate(zip(heads, cells, strict=True)):
        if stacked:
            head.load_state_dict({name: value[k] for name, value in weights.items()}, strict=False)
        head.eval()
        with torch.no_grad():
            result = validate(head)
        state = {name: value.detach().cpu().clone() for name, value in head.state_dict().items()}
        done.append((Trained(state, rate, decay, result[0]), result))
    return done


def _descend(
    weights: Weights,
    losses: Callable[[NDArray[np.int64]], Tensor],
    steps: list[NDArray[np.int64]],
    cells: Sequence[Cell],
) -> None:
    """AdamW (Loshchilov and Hutter 2019) on C heads at once, written out since torch's has one rate for a tensor.

    The rate falls linearly to 0 over all steps, and a gradient's norm is at most 5, that of the state weights left out.
    """
    leaves, count = list(weights.values()), len(cells)
    rate, decay = torch.tensor([cell[1:] for cell in cells], device=leaves[0].device).T[..., None]  # (C, 1) each
    moments = [[torch.zeros_like(leaf).view(count, -1) for _ in range(3)] for leaf in leaves]
    for done, batch in enumerate(steps):
        # A speaker head has no use for its bias.
        grads = torch.autograd.grad(losses(batch).sum(), leaves, materialize_grads=True, allow_unused=True)
        rest = [grad.reshape(count, -1) for name, grad in zip(weights, grads, strict=True) if name != "mix.weights"]
        clip = (5.0 / (torch.stack([x.norm(dim=1) for x in rest]).norm(dim=0) + 1e-6)).clamp_max(1.0)[:, None]
        now = (1 - done / len(steps)) * rate
        for name, leaf, grad, (first, second, scratch) in zip(weights, leaves, grads, moments, strict=True):
            value, grad, is_mix = leaf.detach().view(count, -1), grad.reshape(count, -1), name == "mix.weights"
            if not is_mix:
                grad = torch.mul(grad, clip, out=scratch)
                value.mul_(1 - now * decay)
            first.lerp_(grad, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
            torch.sqrt(second, out=scratch).mul_((1 - BETAS[1] ** (done + 1)) ** -0.5).add_(1e-8)
            torch.div(first, scratch, out=scratch).mul_(
                now * (MIX_RATE if is_mix else 1) / (1 - BETAS[0] ** (done + 1))
            )
            value.sub_(scratch)


def shuffled(count: int, size: int) -> Callable[[int, int], list[NDArray[np.int64]]]:
    """Batches of at most `size` of `count` indices, shuffled by (seed, epoch)."""

    def batches(seed: int, epoch: int) -> list[NDArray[np.int64]]:
        order = generator(seed, "epoch", epoch).permutation(count)
        return [np.sort(order[start : start + size]) for start in range(0, count, size)]

    return batches


def fit_averaged(
    kind: Callable[..., nn.Module], train: StoredFeatures, targets: NDArray[np.int64], classes: Sequence[int],
    validate: Validate, config: HeadConfig, seed: int, tick: Tick = None, device: torch.device | str = "cpu",
) -> list[Trained]:  # fmt: skip
    """Heads of a `kind` on averaged features (N, …, S, D), chosen by `validate`; targets (N, slots) are class indices."""

    def losses(head: nn.Module, weights: Weights, batch: NDArray[np.int64]) -> Tensor:
        rows = torch.from_numpy(np.asarray(train.rows[batch], dtype=np.float32)).to(device)  # (C or 1, B, S, D)
        return head.losses(weights, rows, torch.from_numpy(targets[batch]).to(device))  # type: ignore[operator, no-any-return]

    build = builder(kind, train, classes, device=device)
    return train_heads(build, losses, shuffled(len(train), config.batch), validate, config, seed, tick)


def by_answers(valid: StoredFeatures, targets: NDArray[np.int64]) -> Validate:
    """A head is as good as the share of utterances whose slots are all right, then as its loss is small."""

    def validate(head: nn.Module) -> tuple[float, float]:
        device, right, loss = next(head.parameters()).device, 0.0, 0.0
        for part, rows in valid.chunks():
            logits, truth = head(rows.to(device)), torch.from_numpy(targets[part]).to(device)
            right += float((torch.stack([x.argmax(-1) for x in logits], 1) == truth).all(1).sum())
            loss += float(sum(functional.cross_entropy(x, truth[:, k], reduction="sum") for k, x in enumerate(logits)))
        return right / len(valid), -loss

    return validate


def builder(
    kind: Callable[..., nn.Module], train: StoredFeatures, *sizes: Any, device: torch.device | str = "cpu"
) -> Build:
    """Fresh heads ``kind(S, D, *sizes)`` that share one pass over the training features for their mean and deviation."""
    shape = train.rows.shape[-2:]
    fitted = Mix(*shape)
    fitted.fit(train)

    def build() -> nn.Module:
        head = kind(*shape, *sizes)
        head.mix.load_state_dict(fitted.state_dict())  # type: ignore[operator, union-attr]
        return head.to(device)

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
    device = next(head.parameters()).device
    return torch.cat([head.embed(rows.to(device)).cpu() for _, rows in features.chunks()])  # type: ignore[operator]
