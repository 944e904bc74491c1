"""What draws depend on, for any keys: never on the batch that they are drawn in."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkit.data.framing import Framing
from alignkit.data.pictures import covering
from alignkit.noise import bernoulli, integers, normal, uniform
from alignkit.types import Key

INT64 = st.integers(-(2**63), 2**63 - 1)
SEEDS = st.integers(-(2**70), 2**70)
RECORDS = st.lists(st.tuples(INT64, st.integers(0, 2**40)), min_size=1, max_size=8)
SHARES = st.floats(0, 1)


def key(seed: int, records: list[tuple[int, int]]) -> Key:
    ids, visits = zip(*records, strict=True)
    return Key(seed, torch.tensor(ids), torch.tensor(visits))


@given(seed=SEEDS, records=RECORDS, purpose=st.text(max_size=20), data=st.data())
def test_a_draw_is_the_same_in_every_batch(
    seed: int, records: list[tuple[int, int]], purpose: str, data: Any
) -> None:
    """Of a part of the batch, in any order, some records twice: each has what it has alone."""
    places = data.draw(st.lists(st.integers(0, len(records) - 1), min_size=1, max_size=10))
    part = key(seed, [records[place] for place in places])
    whole = key(seed, records)
    assert torch.equal(normal(part, purpose, (2, 3)), normal(whole, purpose, (2, 3))[places])
    assert torch.equal(integers(part, purpose, 1000), integers(whole, purpose, 1000)[places])
    assert torch.equal(bernoulli(part, purpose, 0.5), bernoulli(whole, purpose, 0.5)[places])


@given(seed=SEEDS, records=RECORDS, few=st.integers(1, 8), more=st.integers(1, 8))
def test_the_first_numbers_are_the_same_however_many_are_drawn(
    seed: int, records: list[tuple[int, int]], few: int, more: int
) -> None:
    drawn = uniform(key(seed, records), "noise", few + more)
    assert torch.equal(drawn[:, :few], uniform(key(seed, records), "noise", few))
    assert ((drawn > 0) & (drawn < 1)).all()


@given(seed=SEEDS, first=st.integers(-(2**62), 2**62), step=st.integers(-(2**20), 2**20).filter(bool))
def test_draws_of_any_records_in_even_steps_are_uniform(seed: int, first: int, step: int) -> None:
    """Kolmogorov-Smirnov on 4000 records: below 2.5 / sqrt(n), which fair draws exceed once in 130,000."""
    ids = first + step * torch.arange(4000)
    drawn = uniform(Key(seed, ids, torch.zeros_like(ids)), "noise")[:, 0].sort().values
    steps = torch.arange(4001, dtype=torch.float64) / 4000
    distance = torch.maximum((drawn - steps[:-1]).max(), (steps[1:] - drawn).max())
    assert distance < 2.5 / 4000**0.5


@given(seed=SEEDS, records=RECORDS, high=st.integers(1, 2**40))
def test_integers_are_below_their_bound(seed: int, records: list[tuple[int, int]], high: int) -> None:
    drawn = integers(key(seed, records), "timestep", high)
    assert ((drawn >= 0) & (drawn < high)).all()


@given(record=INT64, visit=st.integers(0, 2**40), seed=SEEDS, shift=SHARES, flip=SHARES)
def test_a_crop_is_as_far_from_the_centre_as_is_allowed(
    record: int, visit: int, seed: int, shift: float, flip: float
) -> None:
    framing = Framing(shift, flip, seed).checked()
    crop = framing.crop(record, visit)
    assert crop == framing.crop(record, visit)
    for share in (crop.down, crop.right):
        assert abs(share - 0.5) <= shift / 2
    assert flip > 0 or not crop.flipped


@given(
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    wanted=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
)
def test_what_covers_does_so_and_no_more(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Neither side is smaller, one fits exactly, and the ratio of sides is kept to half a pixel."""
    whole = covering(size, wanted)
    assert all(side >= ask for side, ask in zip(whole, wanted, strict=True))
    assert any(side == ask for side, ask in zip(whole, wanted, strict=True))
    scale = max(ask / side for ask, side in zip(wanted, size, strict=True))
    assert all(abs(found - side * scale) <= 0.5 + 1e-9 for found, side in zip(whole, size, strict=True))
