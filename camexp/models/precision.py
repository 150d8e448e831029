"""How exact a GPU's products are, which is a setting of the whole process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def exact_products() -> None:
    """From now on no factor is rounded, as those of convolutions are by default, and convolutions repeat to the bit."""
    _round(False)
    torch.backends.cudnn.deterministic = True


@contextmanager
def products_in_tf32(wanted: bool) -> Iterator[None]:
    """Where wanted, factors of products are rounded to 10 bits (TensorFloat-32) while the context lasts."""
    if not wanted:
        yield
        return
    _round(True)
    try:
        yield
    finally:
        _round(False)


def _round(factors: bool) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = factors
