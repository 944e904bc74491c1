"""Records of every kind become batches that say what the records say. Suffix: B pairs."""

import io
import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alignkit.components import PairSource
from alignkit.data.dataset import PairDataset, collate
from alignkit.types import PairRecord

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)]


def picture(colour: int, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(file, "PNG")
    return file.getvalue()


class Records(PairSource):
    """Records that are given."""

    def __init__(self, records: list[PairRecord]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> PairRecord:
        return self.records[index]

    def prompts(self) -> list[str]:
        return [record.prompt for record in self.records]

    def labels(self) -> list[float]:
        return [record.label_0 for record in self.records]

    def ids(self) -> list[int]:
        return [record.id for record in self.records]

    def users(self) -> list[str]:
        return [record.user for record in self.records]


CAPTIONS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", " ", "x" * 10_000, "猫" * 10_000, "a\0b", "é", "e\u0301", "\u202e", "🧑‍🌾"]),
)
SIZES = st.tuples(st.integers(1, 20), st.integers(1, 20))
COLOUR = st.integers(0, len(COLOURS) - 1)


@st.composite
def records(draw: Any) -> list[tuple[PairRecord, int, int]]:
    """Records with the colours of their pictures; ids twice, both pictures alike, and ties among them."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        colours = draw(st.tuples(COLOUR, COLOUR))
        images = [picture(colour, draw(SIZES)) for colour in colours]
        id_ = draw(st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)]) | st.integers(-(2**63), 2**63 - 1))
        label = draw(st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1))
        record = PairRecord(id_, draw(CAPTIONS), images[0], images[1], label, draw(st.text(max_size=5)))
        found.append((record, *colours))
    return found


@given(given_records=records(), ties=st.sampled_from(["drop", "coin", "soft"]), visit=st.integers(0, 2**40))
def test_a_batch_says_what_its_records_say(
    given_records: list[tuple[PairRecord, int, int]], ties: Any, visit: int
) -> None:
    """Winner first, its own colour on every pixel, and captions, users and ids as they were."""
    kept = [one for one in given_records if ties != "drop" or one[0].label_0 != 0.5]
    dataset = PairDataset(Records([record for record, *_ in given_records]), 8, ties=ties)
    assert len(dataset) == len(kept)
    if not kept:
        return
    batch = collate([dataset[index, visit] for index in range(len(dataset))])
    assert batch.prompts == tuple(record.prompt for record, *_ in kept)
    assert batch.users == tuple(record.user for record, *_ in kept)
    assert batch.id_B.tolist() == [record.id for record, *_ in kept]
    assert batch.visit_B.tolist() == [visit] * len(kept)
    assert batch.image_KBCHW is not None
    assert batch.image_KBCHW.shape == (2, len(kept), 3, 8, 8)
    assert (batch.label_B is not None) == (ties == "soft")
    for place, (record, first, second) in enumerate(kept):
        expected = [torch.tensor(COLOURS[colour]) / 127.5 - 1 for colour in (first, second)]
        shown = [batch.image_KBCHW[side, place] for side in (0, 1)]
        # of a tie, coins decide
        tied = record.label_0 == 0.5
        if record.label_0 < 0.5 or (tied and not torch.equal(shown[0][:, 0, 0], expected[0])):
            expected.reverse()
        for image_CHW, colour in zip(shown, expected, strict=True):
            assert torch.equal(image_CHW, colour[:, None, None].expand(3, 8, 8))
        if batch.label_B is not None:
            wanted = max(record.label_0, 1 - record.label_0)
            assert math.isclose(batch.label_B[place].item(), wanted, rel_tol=1e-6)
    again = collate([dataset[index, visit] for index in range(len(dataset))])
    assert torch.equal(again.image_KBCHW, batch.image_KBCHW)  # type: ignore[arg-type]
    part = batch.at([len(kept) - 1, 0])
    assert part.prompts == (batch.prompts[-1], batch.prompts[0])
    assert part.id_B.tolist() == [kept[-1][0].id, kept[0][0].id]
    assert torch.equal(part.image_KBCHW, batch.image_KBCHW[:, [-1, 0]])  # type: ignore[arg-type]
