"""MinHash signatures and their bands.

With 20 bands of 6 rows a pair of Jaccard similarity 0.8 becomes a candidate with probability
1 - (1 - 0.8^6)^20 = 0.998, one of 0.5 with 0.27. Candidates are then compared exactly, so bands
decide how many pairs are found and never which pair is removed.

References:
    Broder 1997, On the resemblance and containment of documents
    Leskovec et al., Mining of Massive Datasets, chapter 3 (banding)
"""

from __future__ import annotations

import numpy as np

from reference.data.words import mix

BANDS, ROWS = 20, 6
_BLOCK = 256  # shingles at a time: the products stay in the cache

_PLACES = np.arange(1, BANDS * ROWS + 1, dtype=np.uint64)
_FACTORS = mix(_PLACES) | np.uint64(1)  # odd, so each is a permutation of the 64-bit numbers
_SHIFTS = mix(_PLACES << np.uint64(32))


def band_keys(shingles: np.ndarray) -> np.ndarray:
    """(BANDS,) uint64: texts that share one key are candidates.

    Args:
        shingles: (N,) uint64 hashes, N > 0.
    """
    lowest = np.full(BANDS * ROWS, np.iinfo(np.uint64).max, dtype=np.uint64)
    for begin in range(0, len(shingles), _BLOCK):
        block = shingles[begin : begin + _BLOCK]
        values = np.multiply.outer(_FACTORS, block)  # (BANDS * ROWS, block)
        values += _SHIFTS[:, None]
        np.minimum(lowest, values.min(axis=1), out=lowest)
    rows = mix(lowest).reshape(BANDS, ROWS)
    keys = np.arange(1, BANDS + 1, dtype=np.uint64)
    for column in rows.T:  # the band's number is in the key: equal keys are of one band
        keys = mix(keys ^ column)
    return keys


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Shared part of two sets of distinct shingles; 1.0 for two empty ones."""
    if not len(first) and not len(second):
        return 1.0
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)
