"""Folders of models are found by path, in a package, or left to the hub."""

from pathlib import Path

import pytest

from alignkit.folders import located_folder
from alignkit.trust import trusting

WORDS = {"marker": "config.json", "kind": "model", "owner": "Reader"}


def test_folder_is_given_back_as_it_was_named(tmp_path: Path):
    (tmp_path / "config.json").touch()
    assert located_folder(str(tmp_path), **WORDS) == str(tmp_path)


def test_package_and_folder_are_a_place_on_disk():
    found = located_folder("alignkit_emoji:judge", **WORDS)
    assert (Path(found) / "config.json").is_file()
    assert Path(found).name == "judge"


def test_hub_id_is_left_as_it_is_unless_there_is_such_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert located_folder("owner/name-1.5", **WORDS) == "owner/name-1.5"
    Path("owner/name-1.5").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^Reader: path 'owner/name-1.5' is no model folder"):
        located_folder("owner/name-1.5", **WORDS)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere/at/all", r"^Reader: path 'nowhere/at/all' is no model folder \(it has no config.json\)"),
        ("no_such_package:judge", "^Reader: path .*: no package 'no_such_package' is installed$"),
        ("alignkit_emoji:nothing", "is no model folder"),
    ],
)
def test_what_is_no_folder_is_named(path: str, message: str):
    with trusting(["no_such_package"]), pytest.raises(ValueError, match=message):
        located_folder(path, **WORDS)
