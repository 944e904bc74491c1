"""The order of records, over epochs, ranks and restarts."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from alignkit.data.loader import ResumableLoader
from alignkit.data.module import AlignData
from alignkit.data.pictures import decode
from tests.integration.conftest import NoisyPairs


class Places(Dataset[tuple[int, int]]):
    """Gives back what it is asked for."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, int]:
        return place


def loader(rank: int = 0, world_size: int = 1, batch_size: int = 4, **options: Any) -> ResumableLoader:
    return ResumableLoader(
        Places(), batch_size, seed=5, rank=rank, world_size=world_size, collate_fn=list, **options
    )


def test_each_epoch_is_a_new_order_of_the_same_records() -> None:
    whole = loader(batch_size=22)
    first, second = next(iter(whole)), next(iter(whole))
    assert sorted(index for index, _ in first) == list(range(22))
    assert [index for index, _ in first] != [index for index, _ in second]
    assert {visit for _, visit in first} == {0}
    assert {visit for _, visit in second} == {1}


def test_after_so_many_visits_the_first_comes_again() -> None:
    """The order goes on; what is drawn for a record is that of an earlier visit."""
    limited, whole = loader(visits=2), loader()
    for epoch in range(5):
        found, expected = list(limited), list(whole)
        assert [[index for index, _ in batch] for batch in found] == [
            [index for index, _ in batch] for batch in expected
        ]
        assert {visit for batch in found for _, visit in batch} == {epoch % 2}


@pytest.mark.parametrize("stop", [1, 3, 5])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_goes_on_where_it_stopped(stop: int, num_workers: int) -> None:
    """At 5 the epoch is over: what was left of it is nothing, and the next call gives the next epoch."""
    straight = loader()
    first, second = list(straight), list(straight)
    stopped = loader()
    batches = iter(stopped)
    for _ in range(stop):
        next(batches)
    resumed = loader(num_workers=num_workers)
    resumed.load_state_dict(stopped.state_dict())
    assert list(resumed) == first[stop:]
    assert list(resumed) == second


@pytest.mark.parametrize(("accumulated", "batches"), [(1, 5), (2, 4), (3, 3), (6, 5)])
def test_an_epoch_is_of_full_steps_if_it_has_one(accumulated: int, batches: int) -> None:
    """22 records are five batches of four."""
    accumulating = loader(accumulated=accumulated)
    assert len(accumulating) == batches
    assert list(accumulating) == list(loader())[:batches]


def test_other_ranks_and_batch_sizes_go_on_with_the_records_that_are_left() -> None:
    whole = list(loader())
    stopped = loader()
    batches = iter(stopped)
    for _ in range(3):
        next(batches)
    ranks = [loader(rank, 3, batch_size=2) for rank in range(3)]
    for each in ranks:
        each.load_state_dict(stopped.state_dict())
    assert sorted(place for each in ranks for place in next(iter(each))) == sorted(whole[3] + whole[4][:2])
    with pytest.raises(ValueError, match="is 12 pairs into an epoch, no multiple of the 5 that all devices"):
        loader(batch_size=5).load_state_dict(stopped.state_dict())


def test_too_few_pairs_for_a_step_are_refused() -> None:
    data = AlignData(NoisyPairs(10), batch_size=16, resolution=16)
    with pytest.raises(ValueError, match="8 training pairs are fewer than the 16 of one step"):
        data.setup("fit")


def test_a_broken_picture_names_its_pair() -> None:
    with pytest.raises(ValueError, match=r"pair 7: its picture cannot be read \(4 bytes\)"):
        decode(b"none", (16, 16), "pair 7")


def test_pictures_are_resized_by_their_shorter_side_and_cropped_in_the_middle() -> None:
    """Twice the asked height, three times as wide as high: blue, red, blue. Only the red is left."""
    picture = Image.new("RGB", (48, 16), "blue")
    picture.paste("red", (12, 0, 36, 16))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    image_CHW = decode(buffer.getvalue(), (8, 8), "pair 0").image_CHW
    red_CHW = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1).expand(3, 8, 8)
    assert torch.equal(image_CHW, red_CHW)


def test_pictures_of_the_asked_size_keep_their_pixels() -> None:
    data = NoisyPairs()[0].image_0
    pixels_HWC = np.asarray(Image.open(io.BytesIO(data)))
    image_CHW = decode(data, (16, 16), "pair 0").image_CHW
    assert torch.equal(((image_CHW + 1) * 127.5).round().byte(), torch.tensor(pixels_HWC).permute(2, 0, 1))
