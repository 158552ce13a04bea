"""Seeds: one declared number reaches everything, and no consumer's seed depends on another's."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def derive_seed(seed: int, *path: object) -> int:
    """Derive a seed from the declared one and a path of names, such as model, split, fold and repeat.

    Args:
        seed: The declared seed.
        path: What the seed is for. A different path gives an unrelated seed, so that adding a model changes no
            other model's figures.

    Returns:
        A number from 0 to 2^63 - 1.
    """
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def scramble(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Map 64-bit numbers one to one to others that look drawn at random.

    Source: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, figure 16), the additive step included.
    """
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed
