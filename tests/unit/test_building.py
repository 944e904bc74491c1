"""Single parts of a config, for commands that train nothing."""

from pathlib import Path

import pytest

from alignkit import catalog
from alignkit.building import build, read
from alignkit.configfiles import ConfigNotFoundError
from alignkit.mistakes import UsageError
from alignkit_dmpo.objective import DMPO
from alignkit_emoji.source import EmojiPairs

INSTALLED = catalog.discover()


def test_named_parts_are_built_and_no_others() -> None:
    built = build(read(INSTALLED, "dmpo.yaml"), ("objective", "data", "weighting"))
    assert set(built) == {"objective", "data"}
    assert isinstance(built["objective"], DMPO)
    assert isinstance(built["data"].train, EmojiPairs)
    assert built["data"].resolution == 32


def test_a_part_that_refuses_its_settings_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("objective: {name: DMPO, alpha: 2.0}\n")
    with pytest.raises(ValueError, match=r"alpha must lie in \(0, 0.5\], got 2.0"):
        build(read(INSTALLED, str(tmp_path / "x.yaml")), ("objective",))


def test_a_part_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("objective: {name: DMPO, gamma: 2.0}\n")
    with pytest.raises(UsageError, match=r"x.yaml: .*gamma"):
        build(read(INSTALLED, str(tmp_path / "x.yaml")), ("objective",), name="x.yaml")


def test_a_config_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigNotFoundError, match="nowhere"):
        read(INSTALLED, "nowhere.yaml")
