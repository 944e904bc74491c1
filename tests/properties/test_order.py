"""No record is lost, doubled or moved, whatever the sizes, ranks and batches.

Shape suffixes: K candidates of a prompt, best first; B pairs; R pairs of the source.
"""

import math
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from alignkit.data.buckets import bucket_sizes, nearest
from alignkit.data.loader import ResumableLoader
from alignkit.data.ordering import TIE, Ordering

INT64 = st.integers(-(2**63), 2**63 - 1)
LABELS = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
# labels are of the pair: records that share an id share them here
PAIRS = st.lists(st.tuples(INT64, LABELS), min_size=1, max_size=20)


class Places(Dataset[tuple[int, int]]):
    """Gives back what it is asked for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, int]:
        return place


def loader(
    count: int, batch_size: int, rank: int = 0, world_size: int = 1, **options: Any
) -> ResumableLoader:
    return ResumableLoader(
        Places(count), batch_size, seed=5, rank=rank, world_size=world_size, collate_fn=list, **options
    )


# batch size, number of ranks
SPLITS = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(count=st.integers(12, 60), one=SPLITS, other=SPLITS)
def test_a_step_holds_the_same_records_however_it_is_split(
    count: int, one: tuple[int, int], other: tuple[int, int]
) -> None:
    """Batch size, ranks and accumulated batches of one product: at most 12."""
    together = math.lcm(math.prod(one), math.prod(other))
    found = []
    for batch_size, world_size in (one, other):
        loaders = [loader(count, batch_size, rank, world_size) for rank in range(world_size)]
        epochs = []
        for _ in range(2):
            read = [place for step in zip(*loaders, strict=True) for batch in step for place in batch]
            epochs.append([sorted(read[start : start + together]) for start in range(0, len(read), together)])
        # the last few may be short of a step, and then are others
        found.append([[step for step in epoch if len(step) == together] for epoch in epochs])
    assert found[0] == found[1]
    assert found[0][0] or together > count
    assert not found[0][0] or found[0][0] != found[0][1]


@given(
    data=st.data(),
    batch_size=st.integers(1, 4),
    world_size=st.integers(1, 3),
    groups=st.none() | st.lists(st.integers(-1, 3), min_size=1, max_size=40),
    count=st.integers(1, 40),
)
def test_an_epoch_has_no_record_twice_and_leaves_the_fewest_out(
    data: Any, batch_size: int, world_size: int, groups: list[int] | None, count: int
) -> None:
    """And goes on, from wherever it is stopped, with what it would have given."""
    count = count if groups is None else len(groups)
    places = None if groups is None else torch.tensor(groups)
    together = batch_size * world_size

    def ranks() -> list[ResumableLoader]:
        return [loader(count, batch_size, rank, world_size, groups=places) for rank in range(world_size)]

    batches = [list(one) for one in ranks()]
    read = [index for rank in batches for batch in rank for index, _ in batch]
    assert len(read) == len(set(read))
    assert set(read) <= set(range(count))
    if groups is None:
        assert len(read) == count // together * together
    else:
        sizes = [groups.count(group) for group in range(4)]
        assert len(read) == sum(size // together * together for size in sizes)
        for step in zip(*batches, strict=True):
            assert len({groups[index] for batch in step for index, _ in batch} - {-1}) == 1
    assert len({len(rank) for rank in batches}) == 1
    stop = data.draw(st.integers(0, len(batches[0])))
    for rank, (stopped, resumed) in enumerate(zip(ranks(), ranks(), strict=True)):
        started = iter(stopped)
        for _ in range(stop):
            next(started)
        resumed.load_state_dict(stopped.state_dict())
        assert list(resumed) == batches[rank][stop:]
        assert {visit for batch in resumed for _, visit in batch} <= {1}


@given(pairs=PAIRS, ties=st.sampled_from(["drop", "coin", "soft"]), seed=INT64, data=st.data())
def test_the_order_of_a_pair_is_its_own(
    pairs: list[tuple[int, float]], ties: Any, seed: int, data: Any
) -> None:
    """Sides are each read once, and neither other pairs nor the place among them change them."""
    reads = data.draw(st.sampled_from(["pair", "either"] if ties == "soft" else ["pair", "winner", "either"]))
    ordering = Ordering(reads, ties, seed).checked()
    ids, labels = zip(*pairs, strict=True)
    rows = ordering.rows(labels).tolist()
    assert rows == [row for row, label in enumerate(labels) if ties != "drop" or label != TIE]
    whole = ordering.chosen(ids, labels)
    assert set(np.unique(whole.side_KB)) <= {0, 1}
    if reads == "pair":
        assert (whole.side_KB.sum(0) == 1).all()
    for place, (id_, label) in enumerate(pairs):
        alone = ordering.chosen([id_], [label])
        assert (alone.side_KB[:, 0] == whole.side_KB[:, place]).all()
        assert (alone.label_B is None) == (whole.label_B is None)
        if whole.label_B is not None and alone.label_B is not None:
            assert alone.label_B[0] == whole.label_B[place]
            assert 0 <= whole.label_B[place] <= 1
        if reads != "either" and label != TIE:
            assert whole.side_KB[0, place] == (label < TIE)


@given(pairs=PAIRS)
def test_soft_labels_say_of_either_side_what_the_record_says(pairs: list[tuple[int, float]]) -> None:
    """Swapping pictures and label swaps sides and changes no probability."""
    ids, labels = zip(*pairs, strict=True)
    pair = Ordering("pair", "soft").chosen(ids, labels)
    assert pair.label_B is not None
    first_B = np.where(pair.side_KB[0] == 0, pair.label_B, 1 - pair.label_B)
    np.testing.assert_allclose(first_B, labels, rtol=0, atol=1e-15)
    assert (pair.label_B >= TIE).all()


@given(
    step=st.sampled_from([8, 16, 32, 64]),
    times=st.integers(1, 16),
    size=st.tuples(*[st.integers(1, 4000)] * 2),
)
def test_no_shape_has_more_pixels_and_no_other_is_nearer(
    step: int, times: int, size: tuple[int, int]
) -> None:
    sizes = bucket_sizes(step * times, step)
    assert len(set(sizes)) == len(sizes)
    assert (step * times, step * times) in sizes
    assert {(width, height) for height, width in sizes} == set(sizes)
    for height, width in sizes:
        assert height * width <= (step * times) ** 2
        assert height % step == width % step == 0
        assert max(height, width) <= 4 * min(height, width)
    chosen = sizes[nearest(sizes, size)]
    upright = nearest(sizes, (size[1], size[0]))
    mirrored = sizes[upright]

    def off(shape: tuple[int, int], wanted: tuple[int, int]) -> float:
        return abs(np.log(shape[0] / shape[1]) - np.log(wanted[0] / wanted[1]))

    assert off(chosen, size) <= min(off(shape, size) for shape in sizes) + 1e-12
    assert abs(off(mirrored, (size[1], size[0])) - off(chosen, size)) < 1e-9
