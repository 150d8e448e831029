"""Random generators seeded by names, so that a result does not depend on batch, order or shard."""

import hashlib

import numpy as np
import torch


def seed_from(*names: object) -> int:
    """A 63-bit seed from the SHA-256 of the names' texts, the same on every machine and version."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(*names: object) -> torch.Generator:
    """A CPU generator for `names`; draw on the CPU and move, so that a GPU sees the same numbers."""
    return torch.Generator().manual_seed(seed_from(*names))


def numpy_generator(*names: object) -> np.random.Generator:
    """A NumPy generator for `names`."""
    return np.random.Generator(np.random.PCG64(seed_from(*names)))
