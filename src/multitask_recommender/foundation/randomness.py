"""Seeds: one declared number reaches everything, and no consumer's seed depends on another's."""

import hashlib


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
