"""Speaker verification: which pairs of utterances are compared, and how alike they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..randomness import generator

MOST = 3000  # utterances whose pairs are considered, which bounds the memory


Trials = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]
"""Two utterances of each pair, left (P,) and right (P,), and whether one speaker says both, same (P,)."""


def make_trials(speakers: Sequence[str], limit: int, seed: int = 0) -> Trials:
    """At most `limit` pairs of utterances, half of them of one speaker where there are enough.

    speakers: (N,) who says each utterance. The pairs are always the same for one seed.
    """
    rng = generator(seed, "trials")
    kept = np.sort(rng.permutation(len(speakers))[:MOST])
    left, right = (kept[side] for side in np.triu_indices(len(kept), 1))
    names = np.asarray(speakers)
    same = names[left] == names[right]
    pick = [rng.permutation(np.flatnonzero(kind)) for kind in (same, ~same)]
    target = min(len(pick[0]), max(limit // 2, limit - len(pick[1])))
    chosen = np.sort(np.concatenate([pick[0][:target], pick[1][: limit - target]]))
    return left[chosen], right[chosen], same[chosen]


def trial_similarities(embeddings: Tensor, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cosines of pairs of unit-length embeddings (N, E), (P,)."""
    values = embeddings.double().numpy()
    return np.einsum("pe,pe->p", values[left], values[right])
