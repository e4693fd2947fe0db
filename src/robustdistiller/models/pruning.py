"""Structured pruning of a source encoder on speech: which channels and units a student keeps, and the weights that read them.

A channel is worth what it explains of all the others, as far as the next layer reads them. Keeping those with the largest
weights keeps many that say the same. Here channels are selected one after the other: each is the one from which, together
with those before it, most of what the next layer computes follows by a linear map (a pivoted Cholesky factorisation of the
covariance of the channels on speech, weighted by the weights that read them; greedy column subset selection, Farahat et al.,
ICDM 2011). Then each layer is fitted by least squares, one after the other: the convolutions to the source's output at their
channels, so that every one makes up for what those before it lost, and the readers of feed-forward units so that the kept ones
stand for the others.

With the convolutions of the mini teacher's student cut to an eighth … the whole of their width, the projected output keeps a
cosine (around its mean) of 0.85 with that of the source, against 0.62 with the strongest channels and the same fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .encoder import ConvEncoder, normalize_wave
from .initialise import FEED_FORWARD, PruningPlan, copyable_state, strongest

RIDGE = 1e-4  # of the mean energy of an input: what a minute of speech hardly excites stays small
FEED_FORWARD_RIDGE = 1e-2  # thousands of units, thousands of frames


Moments = dict[int, tuple[Tensor, Tensor]]
"""Covariance (C, C) and mean (C,) of the units of a layer's feed-forward part, by layer of the source (from 0)."""


@torch.no_grad()
def plan_pruning(
    student: ConvEncoder, source: ConvEncoder, speech: Sequence[Tensor], origins: Sequence[int]
) -> tuple[PruningPlan, Moments]:
    """What a narrower `student` should keep of `source`, judged on `speech`: clips (T,) on the device of `source`.

    origins: the layer of `source` (1-based) that each layer of the student starts from
    """
    kept = strongest(student.model.state_dict(), copyable_state(source, origins))
    layers = source.model.feature_extractor.conv_layers
    with evaluating(source):
        for position, channels in enumerate(kept.channels):
            covariance, _ = _moments(_convolved(source, layers[: position + 1], wave)[0].T for wave in speech)
            last = position + 1 == len(layers)
            reader = source.model.feature_projection.projection if last else layers[position + 1].conv
            # (out, in, kernel) → (in, out · kernel); the projection has one tap
            weights = reader.weight.transpose(0, 1).flatten(1)
            kept.channels[position] = select_channels(covariance, weights, len(channels))
        narrower = [origins[layer] - 1 for layer, units in enumerate(kept.units) if units is not None]
        moments = _unit_moments(source, narrower, speech)
    for layer, origin in enumerate(origins):
        units = kept.units[layer] if layer < len(kept.units) else None
        if units is not None:
            weights = _reader(source, origin - 1).weight.T
            kept.units[layer] = select_channels(moments[origin - 1][0], weights, len(units))
    return kept, moments


@torch.no_grad()
def fit(
    student: ConvEncoder,
    source: ConvEncoder,
    kept: PruningPlan,
    moments: Moments,
    speech: Sequence[Tensor],
    origins: Sequence[int],
) -> None:
    """Fit the pruned parts of `student`, in place, to what `source` makes of `speech`: clips (T,) on its device.

    The first convolution gets the same waveform and stays; each other one, the projection where it reads fewer channels, and
    the second half of each pruned feed-forward part become the linear maps with the least squared error.
    """
    if kept.channels:
        with evaluating(student), evaluating(source):
            _fit_front_end(student, source, kept.channels, speech)
    for layer, units in enumerate(kept.units):
        if units is not None:
            theirs = origins[layer] - 1
            _fit_feed_forward(_reader(student, layer), _reader(source, theirs), units, *moments[theirs])


def select_channels(covariance: Tensor, weights: Tensor, count: int) -> Tensor:
    """The `count` channels from which most of ``weights.T @ x`` can be told, in rising order.

    covariance (C, C) of the channels x, in float64; weights (C, N) that read them
    """
    rest, read = covariance.clone(), covariance @ weights.double().cpu()  # what the chosen channels leave unexplained
    floor = 1e-9 * covariance.diagonal().mean().clamp_min(1e-30)
    free = torch.ones(len(covariance), dtype=torch.bool)
    for _ in range(count):
        # A channel without anything new of its own gains nothing.
        own = rest.diagonal().clone()
        gain = torch.where(own > floor, read.square().sum(1) / own.clamp_min(floor), torch.zeros_like(own))
        best = int(torch.where(free, gain, torch.full_like(gain, -1.0)).argmax())
        free[best] = False
        if own[best] > floor:
            share = rest[:, best] / own[best]
            read.addr_(share, read[best].clone(), alpha=-1)
            rest.addr_(share, rest[best].clone(), alpha=-1)
    return torch.nonzero(~free).flatten()


def _moments(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Parts (F, C) → covariance (C, C) and mean (C,) over all frames, in float64."""
    count, total, square = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for part in parts:
        x = part.double().cpu()
        count, total, square = count + len(x), total + x.sum(0), square + x.T @ x
    mean = total / count
    return square / count - torch.outer(mean, mean), mean


def _unit_moments(source: ConvEncoder, layers: Sequence[int], speech: Sequence[Tensor]) -> Moments:
    """The moments of what the units of these layers say, in one pass over the speech."""
    if not layers:
        return {}
    values: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def remember(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: values[layer].append(args[0][0].half().cpu())

    handles = [_reader(source, layer).register_forward_pre_hook(remember(layer)) for layer in layers]
    try:
        for wave in speech:
            source(wave[None])
    finally:
        for handle in handles:
            handle.remove()
    return {layer: _moments(parts) for layer, parts in values.items()}


def _reader(encoder: ConvEncoder, layer: int) -> Any:
    """The linear map that reads the units of a layer's feed-forward part."""
    return encoder.model.get_submodule(FEED_FORWARD.format(layer, "output"))


def _fit_feed_forward(mine: Any, theirs: Any, units: Tensor, covariance: Tensor, mean: Tensor) -> None:
    """Let the kept units speak for the others, as the best linear guess from them; `mine` and `theirs` are the readers."""
    others = torch.ones(len(mean), dtype=torch.bool)
    others[units] = False
    own = covariance[units][:, units]
    own = own + FEED_FORWARD_RIDGE * own.diagonal().mean() * torch.eye(len(units)).double()
    guess = torch.linalg.solve(own, covariance[units][:, others])  # (kept, others)
    weight = theirs.weight.double().cpu()
    fitted = weight[:, units] + weight[:, others] @ guess.T
    mine.weight.copy_(fitted)
    mine.bias.copy_(theirs.bias.double().cpu() + weight @ mean - fitted @ mean[units])


def _fit_front_end(
    student: ConvEncoder, teacher: ConvEncoder, channels: Sequence[Tensor], speech: Sequence[Tensor]
) -> None:
    mine, theirs = (encoder.model.feature_extractor.conv_layers for encoder in (student, teacher))
    for number, kept in enumerate(channels[1:], 1):
        conv = mine[number].conv
        pairs = (
            (
                conv_patches(_convolved(student, mine[:number], wave), conv.kernel_size[0], conv.stride[0]),
                theirs[number].conv(_convolved(teacher, theirs[:number], wave))[0, kept].T,
            )
            for wave in speech
        )
        weight, bias = least_squares(pairs, conv.bias is not None)
        conv.weight.copy_(weight.unflatten(1, (-1, conv.kernel_size[0])))
        if conv.bias is not None:
            conv.bias.copy_(bias)
    own, reference = (encoder.model.feature_projection for encoder in (student, teacher))
    if own.projection.weight.shape[1] < reference.projection.weight.shape[1]:
        both = ((_convolved(student, mine, wave), _convolved(teacher, theirs, wave)) for wave in speech)
        fit_projection(own, reference, both)


def fit_projection(project: Any, reference: Any, cnn: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Fit a projection to another of the same width, from what both read: pairs of (1, C, F) and (1, C', F)."""
    if project.projection.weight.shape[0] != reference.projection.weight.shape[0]:
        return  # another hidden size has nothing to be fitted to
    norm: Any = getattr(project, "layer_norm", None) or nn.Identity()
    weight, bias = least_squares(((norm(x[0].T), project_cnn(reference, y[0].T)) for x, y in cnn), True)
    project.projection.weight.copy_(weight)
    project.projection.bias.copy_(bias)


def _convolved(encoder: ConvEncoder, layers: Any, wave: Tensor) -> Tensor:
    """(T,) → (1, C, F)"""
    x = wave[None]
    if encoder.normalize:
        x = normalize_wave(x, torch.tensor([len(wave)], device=wave.device))
    x = x[:, None]
    for layer in layers:
        x = layer(x)
    return x


def conv_patches(x: Tensor, size: int, stride: int) -> Tensor:
    """(1, C, F) → (F', C · size), what a convolution sees in each of its frames."""
    return x[0].unfold(1, size, stride).permute(1, 0, 2).flatten(1)


def project_cnn(projection: Any, x: Tensor) -> Tensor:
    out = projection(x)
    return out[0] if isinstance(out, tuple) else out


def least_squares(pairs: Any, offset: bool) -> tuple[Tensor, Tensor]:
    """Pairs of inputs (F, N) and outputs (F, M) → weight (M, N) and bias (M,), zero without `offset`."""
    gram = cross = torch.zeros((), dtype=torch.float64)
    for x, y in pairs:
        x = x.double().cpu()
        if offset:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        gram, cross = gram + x.T @ x, cross + x.T @ y.double().cpu()
    solved = torch.linalg.solve(gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram)), cross).T.float()
    return (solved[:, :-1], solved[:, -1]) if offset else (solved, solved.new_zeros(len(solved)))


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """In evaluation mode for a while."""
    mode = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(mode)
