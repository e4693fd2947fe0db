"""Steps of 8-bit weights that compute the same on every processor.

A processor without VNNI (most before 2021, many embedded ones since) multiplies an unsigned by a signed 8-bit number, adds two
such products that lie side by side in 16 bits, and where the sum does not fit silently takes the largest number that does:
with weights up to 127, a file that is exact on one machine loses its accuracy on another (a cosine of 0.98 instead of 0.9999
was measured). 255 · (|a| + |b|) fits where |a| + |b| ≤ 128. Steps are therefore such that no two weights which may lie side
by side pass that together: half a bit less than 127 levels, where seven-bit weights would cost a whole one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HIGHEST = 127  # of two neighbours together, before rounding, which may add one

Floats = NDArray[np.float32]


def steps(weight: Floats) -> Floats:
    """What one unit of the 8-bit weights stands for, by output: weight (N, …) → (N,).

    Neighbours are sought along each of the other axes, because engines differ in which of them runs fastest.
    """
    size = np.abs(weight.astype(np.float64))
    highest = size.reshape(len(size), -1).max(1)
    for axis in range(1, size.ndim):
        pairs = np.moveaxis(size, axis, -1)
        sums = pairs[..., :-1] + pairs[..., 1:]
        if sums.size:
            highest = np.maximum(highest, sums.reshape(len(size), -1).max(1))
    return (np.maximum(highest, 1e-12) / HIGHEST).astype(np.float32)
