"""The largest values of rows, found without sorting them."""

import numpy as np
import torch
from torch import Tensor


def value_at_rank(values: Tensor, ranks: Tensor) -> Tensor:
    """The value at a rank of each row of values (R,N) in descending order, (R,1): exactly what sorting gives.

    NumPy's partition orders only the part of a row that holds the rank; its worst rows take as long as sorting.
    (torch.kthvalue needs quadratic time for a falling row.) A GPU sorts all rows at once.

    Parameters
    ----------
    values: finite.
    ranks: (R,) integers in [0, N - 1]; 0 is the rank of the largest value.
    """
    if values.device.type != "cpu":
        return values.sort(1, descending=True).values.gather(1, ranks[:, None])
    rows = values.detach().numpy()
    # negated not only for the order: many equal values, as the zeros of a ReLU, slow partition down at the lower end
    found = [-np.partition(-row, rank)[rank] for row, rank in zip(rows, ranks.tolist(), strict=True)]
    return torch.from_numpy(np.array(found, rows.dtype))[:, None]


def largest(values: Tensor, counts: Tensor, tolerance: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Which values are the `counts` (R,) largest of each row of values (R,N), as far as their order tells.

    Parameters
    ----------
    values: finite.
    counts: integers in [0, N].
    tolerance: difference to the last value that has a place, up to which others are as good.

    Returns
    -------
    above: (R,N) bool, values that have a place for certain.
    level: (R,N) bool, values that compete for the last places; never none.
    places: (R,), how many places are left for these.
    """
    cut = value_at_rank(values, (counts - 1).clamp(min=0))  # the last value that has a place
    above = values > cut + tolerance
    level = (values >= cut - tolerance) & ~above
    return above, level, counts - above.sum(1)


def top(values: Tensor, counts: Tensor) -> Tensor:
    """The `counts` (R,) largest values of each row of values (R,N), (R,N) bool; of equal values the first ones."""
    above, level, places = largest(values, counts)
    return above | (level & (level.cumsum(1) <= places[:, None]))
