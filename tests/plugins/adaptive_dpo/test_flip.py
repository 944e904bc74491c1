"""`alignkit flip`, from its command line to a run's data."""

import json
from pathlib import Path

import pytest
import yaml

from alignkit import catalog, cli
from alignkit.building import build, read
from alignkit.data import AlignData
from alignkit_adaptive_dpo.source import FlippedPairs, read_flips
from alignkit_emoji.source import EmojiPairs

CONFIG = """
data:
  train: {name: EmojiPairs, split: test, users: minority}
  validation: {name: EmojiPairs, split: test, users: majority}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pairs.yaml"
    path.write_text(CONFIG)
    return path


def flip(*arguments: object) -> int:
    return cli.main(["flip", *map(str, arguments)])


@pytest.mark.parametrize(
    ("pairs", "users", "count"), [("train", "minority", 195), ("validation", "majority", 436)]
)
def test_writes_flips_of_the_configs_pairs(
    config: Path, pairs: str, users: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three tenths of 650 and of 1,455 decided pairs; the file can be used as it is."""
    out = config.parent / "new" / "flips.json"
    assert flip("--config", config, "--rate", 0.3, "--seed", 5, "--out", out, "--pairs", pairs) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{count} of ")
    flips = read_flips(out)
    source = EmojiPairs("test", users)  # type: ignore[arg-type]
    assert (flips.rate, flips.seed, flips.pairs, len(flips.ids)) == (0.3, 5, len(source), count)
    assert flips.source["class_path"] == "alignkit_emoji.source.EmojiPairs"
    assert flips.source["init_args"]["users"] == users
    flipped = FlippedPairs(source, str(out))
    differing = [row for row in range(len(source)) if flipped.labels()[row] != source.labels()[row]]
    assert differing == flips.rows


def test_what_it_prints_is_what_a_config_says(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert flip("--config", config, "--rate", 0.2, "--out", "flips.json") == 0
    said = capsys.readouterr().out.split("data.train: ", 1)[1]
    config.write_text(yaml.safe_dump({"data": {"train": json.loads(said)}}))
    data = build(read(catalog.discover(), str(config)), ("data",))["data"]
    assert isinstance(data, AlignData)
    assert isinstance(data.train, FlippedPairs)
    assert sum(data.train.labels()) != sum(EmojiPairs("test", "minority").labels())


def test_refuses_to_overwrite(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", config, "--out", "flips.json", "--rate"]
    assert flip(*arguments, 0.2) == 0
    before = Path("flips.json").read_bytes()
    assert flip(*arguments, 0.3) == 2
    assert "--out flips.json: is there already" in capsys.readouterr().err
    assert Path("flips.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config", "pairs.yaml", "--rate", "1.5"], "rate must be from 0 to 1, got 1.5"),
        (["--config", "pairs.yaml"], "the following arguments are required: --rate"),
        (["--config", "pairs.yaml", "--rate", "a"], "argument --rate: invalid float value: 'a'"),
        (["--config", "nothing.yaml", "--rate", "0.2"], "no config 'nothing.yaml'"),
        (["--config", "empty.yaml", "--rate", "0.2"], "empty.yaml: has no data.train to flip labels of"),
        (
            ["--config", "bad.yaml", "--rate", "0.2"],
            "bad.yaml: data.train.splat: EmojiPairs has no argument 'splat'",
        ),
    ],
)
def test_mistakes_are_told_in_words(
    config: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty.yaml").write_text("objective: DMPO\n")
    Path("bad.yaml").write_text(CONFIG.replace("split", "splat"))
    assert flip(*arguments, "--out", "flips.json") == 2
    assert capsys.readouterr().err.startswith(f"alignkit: error: {told}")
    assert not Path("flips.json").exists()


def test_help_lists_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "  flip       choose pairs whose label is swapped, once" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        flip("--help")
    assert "--rate" in capsys.readouterr().out
