"""Which rewards a run's config says that its training has seen."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from alignkit.evaluation.seen import judges_of, rewards_seen
from alignkit.pairs.files import write_table

INSTALLED = ["MajorityTaste", "EmojiFidelity"]


def reward(name: str) -> dict[str, object]:
    return {"class_path": f"alignkit_emoji.reward.{name}", "init_args": {}}


def test_a_reward_that_a_part_was_given_is_seen_and_one_that_reports_is_not() -> None:
    config = {
        "sampler": {"class_path": "mine.Guided", "init_args": {"by": [{"reward": reward("MajorityTaste")}]}},
        "objective": {"class_path": "alignkit_dmpo.objective.DMPO", "init_args": {"beta": 1.0}},
        "evaluation": {"rewards": [reward("EmojiFidelity")]},
        "data": {"train": {"class_path": "alignkit_emoji.source.EmojiPairs"}},
        "conditioner": None,
    }
    assert rewards_seen(config, INSTALLED) == ("MajorityTaste",)


def test_who_judged_pairs_of_ours_is_seen(tmp_path: Path) -> None:
    """Also where another source is around the one that reads them."""
    path = tmp_path / "pairs.parquet"
    told = {"provenance": {"rewards": {"Redness": {}, "MajorityTaste": {}}}}
    write_table(path, [pa.table({"caption": ["a cat"]})], told)
    inner = {"class_path": "alignkit_sources.pickapic.PickAPic", "init_args": {"path": str(path)}}
    config = {"data": {"train": {"class_path": "mine.Some", "init_args": {"source": inner}}}}
    assert rewards_seen(config, INSTALLED) == ("MajorityTaste", "Redness")
    # sources of parquet take a folder, too
    inner["init_args"] = {"path": str(tmp_path)}
    assert rewards_seen(config, INSTALLED) == ("MajorityTaste", "Redness")


def test_nobody_is_known_of_other_files(tmp_path: Path) -> None:
    plain, broken = tmp_path / "plain.parquet", tmp_path / "broken.parquet"
    pq.write_table(pa.table({"caption": ["a cat"]}), plain)
    broken.write_bytes(b"PAR1")
    assert judges_of(plain) == judges_of(broken) == judges_of(tmp_path / "none.parquet") == []
    assert rewards_seen({}, INSTALLED) == ()
