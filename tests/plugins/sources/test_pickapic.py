"""Pick-a-Pic's columns, read from the parquet file that the emoji plugin ships."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignkit_emoji.pictures import FOLDER
from alignkit_sources.pickapic import PickAPic

PAIRS = FOLDER / "data" / "pairs.parquet"


def test_reads_a_file_in_the_real_schema() -> None:
    table = pq.read_table(PAIRS)
    source = PickAPic(str(PAIRS))
    assert len(source) == table.num_rows
    assert source.labels() == table["label_0"].to_pylist()
    assert source.prompts() == table["caption"].to_pylist()
    row = table.slice(17, 1).to_pylist()[0]
    record = source[17]
    assert (record.prompt, record.image_0, record.image_1) == (row["caption"], row["jpg_0"], row["jpg_1"])
    assert (record.label_0, record.user, record.id) == (row["label_0"], str(row["user_id"]), 17)


def test_reads_the_files_of_a_folder_in_order(tmp_path: Path) -> None:
    for part in (1, 0):
        table = pa.table(
            {"caption": [f"prompt {part}"], "jpg_0": [b"a"], "jpg_1": [b"b"], "label_0": [float(part)]}
        )
        pq.write_table(table, tmp_path / f"{part}.parquet")
    source = PickAPic(str(tmp_path))
    assert source.prompts() == ["prompt 0", "prompt 1"]
    assert source[1].user == ""
    assert len(PickAPic(str(tmp_path), max_pairs=1)) == 1


def test_says_which_column_is_missing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a"], "jpg_0": [b"a"]}), tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match="has no column jpg_1, label_0; it must have"):
        PickAPic(str(tmp_path / "bad.parquet"))


def test_says_that_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no parquet file and no folder that holds some"):
        PickAPic(str(tmp_path))


def test_no_pairs_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PickAPic: max_pairs must be at least 1, got 0"):
        PickAPic(str(tmp_path), max_pairs=0)
