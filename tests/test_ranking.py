"""Values at a rank and largest values against sorting, with the ties and orders that explanation maps have."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from camexp.ranking import largest, top, value_at_rank

ROWS, SIDE = 6, 24
SIZE = SIDE * SIDE
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def enlarged(side: int, mode: str) -> Tensor:
    """A grid without its negative values, enlarged: many zeros."""
    return F.interpolate(drawn(ROWS, 1, side, side).clamp(min=0), (SIDE, SIDE), mode=mode).flatten(1)


RAMP = torch.arange(SIZE).float().expand(ROWS, SIZE)
VALUES = {
    "continuous": drawn(ROWS, SIZE),
    "double": drawn(ROWS, SIZE).double() * (1 + 1e-12),
    "few levels": drawn(ROWS, SIZE).round(),
    "two levels": (drawn(ROWS, SIZE) > 0).float(),
    "7 x 7 nearest": enlarged(7, "nearest"),
    "7 x 7 bilinear": enlarged(7, "bilinear"),
    "14 x 14 bilinear": enlarged(14, "bilinear"),
    "many equal maxima": drawn(ROWS, SIZE).clamp(max=0),
    "constant": torch.full((ROWS, SIZE), 0.5),
    "zeros of both signs": torch.zeros(ROWS, SIZE) * drawn(ROWS, SIZE).sign(),
    "rising": RAMP,
    "falling": RAMP.flip(1),
    "rising and falling": torch.minimum(RAMP, RAMP.flip(1)),
    "not contiguous": drawn(SIZE, ROWS).T,
    "as in graphs": drawn(ROWS, SIZE).requires_grad_(),
}
COUNTS = torch.tensor([0, 1, 57, 288, SIZE - 1, SIZE])
"""One for each row: none, one, some, and all."""

of_every_kind = pytest.mark.parametrize("kind", VALUES)
everywhere = pytest.mark.parametrize("device", DEVICES)


def sorted_top(values: Tensor, counts: Tensor) -> Tensor:
    """The largest values by a stable sort."""
    order = values.argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(values.shape[1], device=values.device) < counts[:, None]
    return torch.zeros_like(chosen).scatter_(1, order, chosen)


def test_value_at_rank_by_hand() -> None:
    values = torch.tensor([[3.0, -1, 3, 2], [0, 5, 4, 6]])
    assert value_at_rank(values, torch.tensor([0, 0])).tolist() == [[3], [6]]
    assert value_at_rank(values, torch.tensor([1, 2])).tolist() == [[3], [4]]
    assert value_at_rank(values, torch.tensor([3, 1])).tolist() == [[-1], [5]]


@everywhere
@of_every_kind
def test_value_at_rank_is_that_of_sorting(kind: str, device: str) -> None:
    values = VALUES[kind].to(device)
    ordered = values.sort(1, descending=True).values
    for rank in (0, 1, 86, 345, SIZE - 1):
        ranks = torch.full((ROWS,), rank, device=device)
        assert torch.equal(value_at_rank(values, ranks), ordered[:, rank, None])
    ranks = torch.tensor([5, 0, SIZE - 1, 100, 86, 400], device=device)
    found = value_at_rank(values, ranks)
    assert torch.equal(found, ordered.gather(1, ranks[:, None]))
    assert found.dtype == values.dtype


def test_the_values_are_left_as_they_are() -> None:
    values = drawn(ROWS, SIZE)
    before = values.clone()
    value_at_rank(values, COUNTS.clamp(max=SIZE - 1))
    assert torch.equal(values, before)


def test_a_rank_beyond_the_row_is_refused() -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        value_at_rank(torch.zeros(1, 4), torch.tensor([4]))


@everywhere
def test_no_rows_have_no_values(device: str) -> None:
    values, none = torch.zeros(0, 4, device=device), torch.zeros(0, dtype=torch.int64, device=device)
    assert value_at_rank(values, none).shape == (0, 1)
    assert top(values, none).shape == (0, 4)


def test_largest_by_hand() -> None:
    values = torch.tensor([[4.0, 2, 2, 1, 2]]).repeat(3, 1)
    above, level, places = largest(values, torch.tensor([0, 1, 3]))
    assert above.int().tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert level.int().tolist() == [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 1]]
    assert places.tolist() == [0, 1, 2]


def test_values_within_the_tolerance_compete_for_the_last_places() -> None:
    values = torch.tensor([[4.0, 2.25, 2, 1.75, 1, 0]])
    above, level, places = largest(values, torch.tensor([3]), tolerance=0.5)
    assert above.int().tolist() == [[1, 0, 0, 0, 0, 0]]
    assert level.int().tolist() == [[0, 1, 1, 1, 0, 0]]
    assert places.tolist() == [2]


@everywhere
@of_every_kind
def test_top_is_that_of_a_stable_sort(kind: str, device: str) -> None:
    values = VALUES[kind].to(device)
    for counts in (COUNTS.to(device), COUNTS.flip(0).to(device), torch.full((ROWS,), 86, device=device)):
        found = top(values, counts)
        assert torch.equal(found, sorted_top(values, counts))
        assert torch.equal(found.sum(1), counts)
