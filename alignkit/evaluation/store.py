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
from alignkit.files import whole

PICTURES, SCORES = "pictures", "scores"
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


class Store:
    """What was drawn and scored in a folder.

    A picture counts as kept when its batch is written down, in one file with its scores, after all of its
    pictures were written.

    Args:
        folder: the folder of the evaluation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._scores: dict[str, dict[str, Values]] = {}

    def read(self) -> None:
        """Reads what there is; a file that is damaged is none."""
        self._scores = {}
        paths = (self.folder / SCORES).glob("*.parquet")
        for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name)):
            try:
                table = pq.read_table(path)
            except (pa.ArrowInvalid, OSError):
                continue
            ends = table["values"].combine_chunks().offsets.to_numpy()
            values = table["values"].combine_chunks().flatten().to_numpy().astype(np.float64)
            pictures, scorers = table["picture"].to_pylist(), table["scorer"].to_pylist()
            for row, (picture, scorer) in enumerate(zip(pictures, scorers, strict=True)):
                known = self._scores.setdefault(picture, {})
                if scorer:
                    known[scorer] = values[ends[row] : ends[row + 1]]

    def has(self, picture: Picture) -> bool:
        """Whether a picture is kept."""
        return picture.key in self._scores and (self.folder / picture.path).is_file()

    def lacking(self, picture: Picture, scorers: Sequence[str]) -> list[str]:
        """Those scorers that have not judged it."""
        known = self._scores.get(picture.key, {})
        return [scorer for scorer in scorers if scorer not in known]

    def values(self, picture: Picture, scorer: str) -> Values:
        """What a scorer said of a picture: one number, or an embedding."""
        return self._scores[picture.key][scorer]

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
        picture, scorer, rows = [], [], []
        for row, one in enumerate(pictures):
            picture += [one.key] * (1 + len(values))
            scorer += ["", *values]
            rows += [[], *(np.atleast_1d(of_all[row]).tolist() for of_all in values.values())]
        table = pa.table(
            {"picture": picture, "scorer": scorer, "values": pa.array(rows, pa.list_(pa.float64()))}
        )
        named = key_of([one.key for one in pictures], sorted(values))
        with whole(self.folder / SCORES / f"{named}.parquet") as partial:
            pq.write_table(table, partial)
