"""Pictures and scores in a folder, each by what determined it: a kill loses a batch at most."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from alignkit.evaluation.identity import key_of
from alignkit.files import quick_hash, whole

PICTURES, SCORES = "pictures", "scores"
SCHEMA = pa.schema(
    [
        ("picture", pa.string()),  # its key
        ("path", pa.string()),
        ("file", pa.string()),  # a hash of it
        ("scorer", pa.string()),  # by key; empty: none
        ("values", pa.list_(pa.float64())),
    ]
)
Values = NDArray[np.float64]


class Picture(NamedTuple):
    """A picture that is wanted.

    Args:
        prompt: what it shows.
        place: number of the prompt in its suite.
        number: which of the prompt's pictures it is, the number of its seed.
        key: a hash of all that determined it.
        path: where it is kept, relative to the folder of the evaluation.
    """

    prompt: str
    place: int
    number: int
    key: str
    path: str


class Kept(NamedTuple):
    """What is known of a picture.

    Args:
        file: a hash of the file that was judged.
        said: by whom it was judged, and how.
    """

    file: str
    said: dict[str, Values]


class Store:
    """What was drawn and scored in a folder.

    A picture counts as kept when its batch is written down, in one file with its scores, after all of its
    pictures were written; and as long as its own file is the one that was judged.

    Args:
        folder: the folder of the evaluation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: dict[tuple[str, str], Kept] = {}
        self._hashes: dict[str, str | None] = {}

    def read(self) -> None:
        """Reads what there is; a file that is damaged is none."""
        self._kept, self._hashes = {}, {}
        paths = (self.folder / SCORES).glob("*.parquet")
        for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name)):
            try:
                table = pq.read_table(path, page_checksum_verification=True)
            except (pa.ArrowException, OSError):
                continue
            if not table.schema.equals(SCHEMA):
                continue
            ends = table["values"].combine_chunks().offsets.to_numpy()
            values = table["values"].combine_chunks().flatten().to_numpy().astype(np.float64)
            columns = (table[name].to_pylist() for name in ("picture", "path", "file", "scorer"))
            for row, (picture, place, file, scorer) in enumerate(zip(*columns, strict=True)):
                known = self._kept.get((picture, place))
                if known is None or known.file != file:
                    known = self._kept[picture, place] = Kept(file, {})
                if scorer:
                    known.said[scorer] = values[ends[row] : ends[row + 1]]

    def has(self, picture: Picture) -> bool:
        """Whether a picture is kept, as it was judged."""
        known = self._kept.get((picture.key, picture.path))
        return known is not None and known.file == self._hash(picture)

    def is_changed(self, picture: Picture) -> bool:
        """Whether a picture is there, and is not the one that was judged."""
        known = self._kept.get((picture.key, picture.path))
        return known is not None and self._hash(picture) not in (None, known.file)

    def lacking(self, picture: Picture, scorers: Sequence[str]) -> list[str]:
        """Those scorers that have not judged it."""
        known = self._kept.get((picture.key, picture.path), Kept("", {}))
        return [scorer for scorer in scorers if scorer not in known.said]

    def values(self, picture: Picture, scorer: str) -> Values:
        """What a scorer said of a picture: one number, or an embedding."""
        return self._kept[picture.key, picture.path].said[scorer]

    def save_pictures(
        self, pictures: Sequence[Picture], images: Sequence[Image.Image], told: Mapping[str, str]
    ) -> None:
        """Writes pictures, with what they are in their own text."""
        for picture, image in zip(pictures, images, strict=True):
            info = PngInfo()
            for name, value in {"prompt": picture.prompt, "seed": str(picture.number), **told}.items():
                info.add_itxt(name, value)
            with whole(self.folder / picture.path) as partial:
                image.save(partial, "PNG", pnginfo=info)

    def write(self, pictures: Sequence[Picture], values: Mapping[str, Values]) -> None:
        """Writes down that pictures are kept, and what scorers said: (N,) or (N, D), by their keys."""
        rows = []
        for row, one in enumerate(pictures):
            said = {"": [], **{key: np.atleast_1d(of_all[row]).tolist() for key, of_all in values.items()}}
            file = quick_hash({"": self.folder / one.path})
            rows += [(one.key, one.path, file, scorer, numbers) for scorer, numbers in said.items()]
        table = pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA)
        named = key_of([(one.key, one.path) for one in pictures], sorted(values))
        with whole(self.folder / SCORES / f"{named}.parquet") as partial:
            pq.write_table(table, partial, write_page_checksum=True)

    def _hash(self, picture: Picture) -> str | None:
        """A hash of a picture's file, computed once; None: there is none."""
        if picture.path not in self._hashes:
            path = self.folder / picture.path
            self._hashes[picture.path] = quick_hash({"": path}) if path.is_file() else None
        return self._hashes[picture.path]
