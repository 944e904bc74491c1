"""The shipped judgements: rebuilt, consistent, and read by the source."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from alignkit_emoji.build.pairs import TIE_SHARE, build
from alignkit_emoji.pictures import FOLDER, decode_image, load_pictures
from alignkit_emoji.source import EmojiPairs
from alignkit_emoji.taste import MAJORITY, MINORITY


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return pq.read_table(FOLDER / "data" / "pairs.parquet")


def column(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist())


def preferred_more(table: pa.Table) -> dict[str, np.ndarray]:
    """Utility of image 0 minus utility of image 1, by taste."""
    pictures = load_pictures()
    uid = {
        f"{name}/{concept}": i
        for i, (name, concept) in enumerate(zip(pictures.sets, pictures.concepts, strict=True))
    }
    left, right = ([uid[x] for x in table[f"image_{i}_uid"].to_pylist()] for i in (0, 1))
    image_NCHW = pictures.image_NCHW.float() / 255
    utilities = {taste.name: taste.utility(image_NCHW).numpy() for taste in (MAJORITY, MINORITY)}
    return {name: utility[left] - utility[right] for name, utility in utilities.items()}


def test_build_gives_the_shipped_files_bit_for_bit(tmp_path):
    build(tmp_path)
    for name in ("taste.json", "pairs.parquet"):
        assert (tmp_path / name).read_bytes() == (FOLDER / "data" / name).read_bytes()


def test_columns_have_the_types_of_pick_a_pic(table):
    expected = {
        "are_different": pa.bool_(),
        "best_image_uid": pa.string(),
        "caption": pa.string(),
        "created_at": pa.timestamp("ns"),
        "has_label": pa.bool_(),
        "image_0_uid": pa.string(),
        "image_1_uid": pa.string(),
        "jpg_0": pa.binary(),
        "jpg_1": pa.binary(),
        "label_0": pa.float64(),
        "label_1": pa.float64(),
        "model_0": pa.string(),
        "model_1": pa.string(),
        "ranking_id": pa.int64(),
        "user_id": pa.int64(),
        "num_example_per_prompt": pa.int64(),
    }
    assert {name: table.schema.field(name).type for name in expected} == expected
    assert table.num_rows == 12_000


def test_a_row_holds_two_drawings_of_its_caption(table):
    pictures = load_pictures()
    png = dict(zip(zip(pictures.sets, pictures.concepts, strict=True), pictures.png, strict=True))
    for row in table.to_pylist():
        assert row["model_0"] != row["model_1"]
        for i in (0, 1):
            assert row[f"jpg_{i}"] == png[row[f"model_{i}"], row["caption"]]
            assert row[f"image_{i}_uid"] == f"{row[f'model_{i}']}/{row['caption']}"


def test_labels_name_the_best_image(table):
    label_0, label_1 = column(table, "label_0"), column(table, "label_1")
    np.testing.assert_array_equal(label_0 + label_1, 1)
    uids = [column(table, "image_0_uid"), column(table, "image_1_uid")]
    best = np.select([label_0 == 1, label_1 == 1], uids, "")
    np.testing.assert_array_equal(best, column(table, "best_image_uid"))


def test_one_answer_in_ten_is_a_tie_between_like_pictures(table):
    tie = column(table, "label_0") == 0.5
    assert tie.mean() == pytest.approx(TIE_SHARE)
    taste = column(table, "taste")
    difference = np.where(taste == "majority", *preferred_more(table).values())
    assert np.abs(difference[tie]).max() < np.abs(difference[~tie]).mean()


def test_people_mostly_answer_as_their_group_and_against_the_other(table):
    """Bradley-Terry draws at the shipped decisiveness agree with the utility in 86 of 100 decided pairs.

    0.8 is ten standard errors of the smaller group away.
    """
    difference, taste, label_0 = preferred_more(table), column(table, "taste"), column(table, "label_0")
    for name, other in (("majority", "minority"), ("minority", "majority")):
        decided = (taste == name) & (label_0 != 0.5)
        assert ((difference[name] > 0) == (label_0 == 1))[decided].mean() > 0.8
        assert ((difference[other] > 0) == (label_0 == 1))[decided].mean() < 0.3


def test_position_says_nothing(table):
    """A share of one half, within four standard errors of 10,800 answers."""
    label_0 = column(table, "label_0")
    assert abs(label_0[label_0 != 0.5].mean() - 0.5) < 4 * 0.5 / 10_800**0.5


def test_splits_share_no_prompt_and_no_user(table):
    for key, split, count in (("caption", "prompt_split", 286), ("user_id", "user_split", 40)):
        names, part = column(table, key), column(table, split)
        train, test = set(names[part == "train"]), set(names[part == "test"])
        assert not train & test
        assert len(train) + len(test) == count
        assert len(train) == round(0.8 * count)


def test_both_tastes_are_in_both_parts_of_the_users(table):
    taste, part, user = column(table, "taste"), column(table, "user_split"), column(table, "user_id")
    count = {(t, p): len(set(user[(taste == t) & (part == p)])) for t in set(taste) for p in set(part)}
    assert count == {
        ("majority", "train"): 22,
        ("majority", "test"): 6,
        ("minority", "train"): 10,
        ("minority", "test"): 2,
    }


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("users", ["majority", "minority", "all"])
@pytest.mark.parametrize("user_split", ["train", "test", "all"])
def test_source_gives_the_rows_that_were_asked_for(table, split, users, user_split):
    keep = column(table, "prompt_split") == split
    keep &= (column(table, "taste") == users) | (users == "all")
    keep &= (column(table, "user_split") == user_split) | (user_split == "all")
    source = EmojiPairs(split, users, user_split)
    assert len(source) == keep.sum() > 0
    assert [record.id for record in source] == column(table, "ranking_id")[keep].tolist()


def test_record_is_the_row_of_its_id(table):
    source = EmojiPairs("test", "minority")
    record = source[len(source) - 1]
    row = table.slice(record.id, 1).to_pylist()[0]
    assert record == (
        row["ranking_id"],
        row["caption"],
        row["jpg_0"],
        row["jpg_1"],
        row["label_0"],
        str(row["user_id"]),
    )
    assert decode_image(record.image_0).shape == (3, 32, 32)
    assert decode_image(record.image_0).dtype == torch.uint8


def test_source_travels_to_workers():
    source = EmojiPairs("test", "minority", "test")
    assert list(pickle.loads(pickle.dumps(source))) == list(source)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("split", "train, test"), ("users", "majority, minority, all"), ("user_split", "train, test, all")],
)
def test_source_refuses_an_unknown_selection(name, allowed):
    with pytest.raises(ValueError, match=f"EmojiPairs: {name} must be one of {allowed}, got 'validation'"):
        EmojiPairs(**{name: "validation"})
