"""Counter-based random streams: a draw depends on its key alone, never on what was drawn before."""
import numpy as np

_MASK = (1 << 64) - 1


def mix64(x: int) -> int:
    """The splitmix64 finaliser, bit for bit the kernels' ``_hash.mix64``."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def derive(seed: int, *ids: int | str) -> int:
    """A 64-bit key for the stream named by ``ids`` (numbers and words) under ``seed``."""
    key = mix64(int(seed) & _MASK)
    for part in ids:
        if isinstance(part, str):
            part = int.from_bytes(part.encode(), "little")
        part = int(part)
        while True:
            key = mix64(key ^ part & _MASK)  # not of a mixed part: seed and id would be interchangeable
            part >>= 64
            if part in (0, -1):
                break
    return key


def stream(seed: int, *ids: int | str) -> np.random.Generator:
    """A numpy generator (Philox) for the stream named by ``ids`` under ``seed``."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *ids)))


def seed_from(random_state) -> int:
    """A 64-bit seed from ``random_state``: int, None, ``Generator`` or ``RandomState``."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(0, 1 << 64, dtype=np.uint64))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(0, 1 << 32, dtype=np.uint64))
    if isinstance(random_state, (int, np.integer)) and not isinstance(random_state, bool):
        if random_state < 0:
            raise ValueError(f"random_state must be non-negative, got {random_state}")
        return int(random_state) & _MASK
    raise TypeError(f"random_state must be None, an int, a numpy Generator or RandomState, "
                    f"got {type(random_state).__name__}")
