"""A traced graph computes what the network computes, at sizes that it was not traced at; what it cannot, it says."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from robustdistiller.deployment.tracing import trace
from robustdistiller.errors import UserError

WEIGHT = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A function (B, T, 6), (B,) → a tensor, as a network."""

    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(WEIGHT.clone())

    def forward(self, x, lengths):
        return self.function(x, lengths, self.weight)


def batch(rows, steps, seed):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, steps + 1, (rows,), generator=draw)
    return torch.randn(rows, steps, 6, generator=draw), lengths


def _written_over(x, lengths):
    y = x.clone()
    y[torch.arange(x.shape[1]) >= lengths[:, None]] = 2.0
    return y.mul_(3).add_(x)


def _attention(x, lengths):
    q = x.view(*x.shape[:2], 3, 2).transpose(1, 2)
    mask = (torch.arange(x.shape[1]) < lengths[:, None])[:, None, None]
    weights = torch.where(mask, q @ q.transpose(2, 3), -1e4).softmax(-1)
    return (weights @ q).transpose(1, 2).reshape(*x.shape[:2], -1).contiguous()


COMPUTED = {
    "a product in three and in two axes": lambda x, n, w: functional.linear(x @ w, w) + (x.mean(1) @ w)[:, None, :1],
    "attention": lambda x, n, w: _attention(x, n),
    "what a branch writes over": lambda x, n, w: _written_over(x, n),
    "division of negative integers": lambda x, n, w: torch.div(n - 9, 4, rounding_mode="floor").float(),
    "division of integers": lambda x, n, w: n / 3,
    "sizes with sums and products": lambda x, n, w: x.new_zeros(x.shape[1] + 3, 2 * x.shape[0]) + x[:1, :1, :1],
    "what a size lacks to a number": lambda x, n, w: w.new_ones(50, 2)[50 - x.shape[1] :] * x[0, :, :2],
    "slices and steps": lambda x, n, w: torch.cat([x[:, 1::2, :4], x[:, : x.shape[1] // 1 : 2, 2:]], 1),
    "times and places": lambda x, n, w: torch.arange(x.shape[1]).float()[None].repeat(2, 1) * x[:1, :, 0],
    "rows by number": lambda x, n, w: x.gather(1, (n[:, None, None] - 1).expand(-1, -1, 6)),
    "elements by numbers": lambda x, n, w: x[torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])[None]],
    "padding": lambda x, n, w: functional.pad(x, (1, 2, 3, 0), value=1.5),
    "unequal parts": lambda x, n, w: torch.stack([p.sum(-1) for p in x.split([1, 3, 2], -1)], -1),
    "norms": lambda x, n, w: functional.layer_norm(x, (6,)) + functional.layer_norm(x, (6,), w[:, 0], w[:, 1]),
    "a convolution and back": lambda x, n, w: functional.conv_transpose1d(
        functional.conv1d(x.transpose(1, 2), w.T[:, :, None], padding=1, stride=2), w.T[:, :, None]
    ),
    "activations": lambda x, n, w: functional.gelu(x) + x.sigmoid() + functional.silu(x) * functional.glu(x).repeat(1, 1, 2),
    "numbers": lambda x, n, w: (1 - x.double().clamp(-0.5, 0.7) ** 2 + 2.5 * (x.abs() + 1).log()).rsqrt().float(),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPUTED)
def test_it_computes_what_the_network_computes_at_other_sizes(name):
    network = Net(COMPUTED[name])
    first, second = batch(2, 11, 0), batch(3, 17, 1)
    model = trace(network, dict(zip(("x", "lengths"), zip(first, second, strict=True), strict=True)), ["y"])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows, steps in ((2, 11), (1, 1), (5, 40), (2, 12)):
        x, lengths = batch(rows, steps, rows + steps)
        wanted = network(x, lengths).detach().numpy()
        found = session.run(None, {"x": x.numpy(), "lengths": lengths.numpy()})[0]
        assert found.shape == wanted.shape and found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_constants_are_computed_once_and_names_tell_the_module():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Net(lambda x, n, w: (x @ (w @ w.T).softmax(0)).relu())

        def forward(self, x, lengths):
            return self.inner(x, lengths)

    first, second = batch(2, 11, 0), batch(3, 17, 1)
    model = trace(Outer(), {"x": (first[0], second[0]), "lengths": (first[1], second[1])}, ["y"])
    assert [node.name for node in model.graph.node] == ["inner/MatMul", "inner/Relu", "/Identity"]
    assert len(model.graph.initializer) == 1


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda x, n, w: torch.linalg.svd(x)[1], "computes _linalg_svd"),
        (lambda x, n, w: x.exp() if x.shape[1] == 11 else x.tanh(), "other things at other sizes"),
        (lambda x, n, w: x.clone()[:, :2].mul_(2), "writes into a part"),
        (lambda x, n, w: x.new_zeros(x.shape[1] ** 3 % 101).sum() + x, "A size of the network"),
    ],
)
def test_what_cannot_be_exported_is_said(function, sentence):
    first, second = batch(2, 11, 0), batch(3, 17, 1)
    with pytest.raises(UserError, match=sentence):
        trace(Net(function), {"x": (first[0], second[0]), "lengths": (first[1], second[1])}, ["y"])
