"""What fuzzing found, and what it starts from: read at every test run, without atheris."""

import warnings
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.readers import READERS, check
from tests.fuzz.seeds import SEEDS, seeds

CORPUS = Path(__file__).parent / "corpus"
FOUND = [(path.parent.name, path) for path in sorted(CORPUS.glob("*/*"))]


def test_every_reader_has_seeds_and_every_input_a_reader() -> None:
    assert READERS.keys() == SEEDS.keys()
    assert {name for name, _ in FOUND} <= READERS.keys()
    assert FOUND


@pytest.mark.parametrize("name", READERS)
def test_seeds_are_read(name: str, tmp_path: Path) -> None:
    """All of them, and whatever is left of them when they are cut off."""
    reader = READERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place, data in enumerate(seeds(name)):
            home = tmp_path / f"whole-{place}"
            home.mkdir()
            reader.read(data, home)
            for part in range(1, 8):
                home = tmp_path / f"{place}-{part}"
                home.mkdir()
                check(reader, data[: len(data) * part // 8], home)


MUTATED = [name for name, reader in READERS.items() if reader.mutate]


@pytest.mark.parametrize("name", MUTATED)
def test_what_is_wrong_inside_is_read_or_refused(name: str, tmp_path: Path) -> None:
    """Changes that the format survives, of which atheris makes more."""
    reader, draw = READERS[name], Random(0)
    assert reader.mutate is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(100):
            data = reader.mutate(draw.choice(seeds(name)), draw)
            home = tmp_path / str(number)
            home.mkdir()
            check(reader, data, home)


@pytest.mark.parametrize(
    ("name", "path"), FOUND, ids=lambda value: value.name if isinstance(value, Path) else value
)
def test_what_fuzzing_found_is_read_or_refused(name: str, path: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(READERS[name], path.read_bytes(), tmp_path)
