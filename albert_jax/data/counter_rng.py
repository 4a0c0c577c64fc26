# SPDX-License-Identifier: Apache-2.0
"""Random numbers as a function of integer keys, vectorised over arrays: nothing to seed, advance or save.

A key is folded in, one integer at a time, by the finaliser of SplitMix64 (Steele, Lea, Flood 2014), which passes
through every bit of a 64-bit word. NumPy's own generators are not used because their streams may change between
releases, and the stream of examples must not.
"""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
Integers = int | np.integer | np.ndarray


def fold(state: np.ndarray, *keys: Integers) -> np.ndarray:
    """Folds further keys into bits: `fold(bits(a), b)` is `bits(a, b)`."""
    with np.errstate(over="ignore"):
        for key in keys:
            x: np.ndarray = (state ^ np.asarray(key).astype(np.uint64)) + _GAMMA
            x ^= x >> np.uint64(30)  # in place, as arrays of a batch are larger than a cache
            x *= np.uint64(0xBF58476D1CE4E5B9)
            x ^= x >> np.uint64(27)
            x *= np.uint64(0x94D049BB133111EB)
            x ^= x >> np.uint64(31)
            state = x
    return np.asarray(state)


def bits(*keys: Integers) -> np.ndarray:
    """64 random bits for each combination of the keys.

    Args:
      keys: non-negative integers or integer arrays that broadcast together; their order matters.

    Returns:
      uint64 array of the broadcast shape.
    """
    return fold(np.zeros((), np.uint64), *keys)


def as_uniform(state: np.ndarray) -> np.ndarray:
    """float64 in [0, 1), the upper 53 of 64 random bits."""
    return (state >> np.uint64(11)) * 2.0**-53


def uniform(*keys: Integers) -> np.ndarray:
    """float64 in [0, 1), 53 random bits, for each combination of the keys."""
    return as_uniform(bits(*keys))


def below(limit: Integers, *keys: Integers) -> np.ndarray:
    """int64 uniform in [0, limit) for each combination of the keys, to within limit / 2**53."""
    return (uniform(*keys) * limit).astype(np.int64)
