"""Randomness as a value: every generator is a pure function of what it is for."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*key: int | str) -> np.random.Generator:
    """A NumPy generator that depends on `key` alone, e.g. ``generator(seed, epoch, utterance_id)``.

    The same key gives the same stream in every process and on every machine; no global state is read or changed.
    """
    return np.random.Generator(np.random.Philox(key=integer(*key, bits=128)))


def integer(*key: int | str, bits: int = 63) -> int:
    """A non-negative integer of at most `bits` bits (up to 512) that depends on `key` alone."""
    # a file name may be no text
    parts = "\x1f".join(f"{type(k).__name__}:{k}" for k in key).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(parts).digest(), "little") >> (512 - bits)


def fraction(*key: int | str) -> float:
    """A number in [0, 1) that depends on `key` alone: for splits and thinning that never change."""
    return integer(*key, bits=53) / 2.0**53
