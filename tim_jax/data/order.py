"""The order of examples: an endless sequence, epoch after epoch, and each epoch is a fresh shuffle of all examples.

The example at a position is computed from (seed, position) alone, so that no permutation is ever stored. The shuffle is
a Feistel cipher on the smallest power of two that holds the examples; numbers that fall outside are enciphered again
until they fall inside, which keeps the map one to one (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
"""

import numpy as np

ROUNDS = 8


def _mix(z: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014) on uint64 of any shape."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _encipher(x: np.ndarray, keys: np.ndarray, bits: int) -> np.ndarray:
    """Maps x, uint64 (n,), one to one on [0, 2^bits) by the keys, uint64 (ROUNDS, n), one column for each."""
    low_bits = np.uint64(bits // 2)
    high_mask, low_mask = np.uint64(2 ** (bits - bits // 2) - 1), np.uint64(2 ** (bits // 2) - 1)
    high, low = x >> low_bits, x & low_mask
    for i in range(0, ROUNDS, 2):
        high = high ^ (_mix(keys[i] ^ low) & high_mask)
        low = low ^ (_mix(keys[i + 1] ^ high) & low_mask)
    return (high << low_bits) | low


def index_at(position: np.ndarray, size: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """The example at each position of the sequence; over one epoch, position // size, every example comes once.

    Args:
        position: integers >= 0, (n,).
        size: the number of examples, at least 1.
        seed: one number >= 0 or several.

    Returns:
        Indices of examples, int64 (n,) in [0, size).
    """
    epoch, x = np.divmod(np.asarray(position, np.uint64), np.uint64(size))
    round_keys = np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64)
    keys = _mix(round_keys[:, None] ^ _mix(epoch + np.uint64(1))[None, :])
    bits = (size - 1).bit_length()
    x = _encipher(x, keys, bits)
    while (outside := np.flatnonzero(x >= size)).size:
        x[outside] = _encipher(x[outside], keys[:, outside], bits)
    return x.astype(np.int64)


def keys(seed: int, step: int, slots: np.ndarray, stream: int = 1) -> np.ndarray:
    """A random number for each example of a step, which depends on (seed, step, slot) alone.

    Args:
        seed, step: integers >= 0.
        slots: places in the global batch, (n,), >= 0.
        stream: numbers of different streams are independent.

    Returns:
        uint64 (n,).
    """
    base = np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64)
    at_step = _mix(base ^ _mix(np.array([step], np.uint64) + np.uint64(1)))
    return _mix(at_step ^ _mix(np.asarray(slots, np.uint64) + np.uint64(1)))


def uniform(seed: int, step: int, slots: np.ndarray, stream: int = 1) -> np.ndarray:
    """As `keys`, but float64 in (0, 1), both ends excluded."""
    return ((keys(seed, step, slots, stream) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
