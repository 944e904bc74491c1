"""Pictures with captions and without losers."""

from collections.abc import Sequence
from pathlib import Path

from alignkit import PairRecord, PairSource
from alignkit_sources.captions import Captions, Folder, give_back
from alignkit_sources.files import check_count, folder, name_id, read_within
from alignkit_sources.tables import check_texts, picture, table


class Captioned(PairSource):
    """Winners alone, for supervised fine-tuning and self-play: the pictures of a folder and their captions.

    Captions stand beside the pictures, as ``<name>.txt`` or ``<name>.caption``, or in ``metadata.jsonl``, a
    line ``{"file_name", "text"}`` each. A picture's id is a hash of its name.

    Args:
        path: the folder.
        max_pairs: uses only the first so many, by name; all of them without it.
    """

    def __init__(self, path: str, max_pairs: int | None = None) -> None:
        check_count("max_pairs", max_pairs, "Captioned")
        found = Folder(folder(path, "Captioned"), "Captioned")
        self._home, self._files, stems = found.home, found.files[:max_pairs], found.stems[:max_pairs]
        if not len(stems):
            raise ValueError(
                f"Captioned: path {path!r} holds no pictures; parquet files are for CaptionedTable"
            )
        self._captions = Captions(found, stems)
        give_back()

    @property
    def winners_only(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> PairRecord:
        file = self._files[index].as_py()
        image = read_within(self._home, file, f"picture {file}")
        return PairRecord(name_id(Path(file).stem), self._captions[index], image, None, 1.0)

    def labels(self) -> list[float]:
        return [1.0] * len(self)

    def prompts(self) -> list[str]:
        return [self._captions[index] for index in range(len(self))]

    def users(self) -> list[str]:
        return [""] * len(self)

    def ids(self) -> list[int]:
        return [name_id(Path(file).stem) for file in self._files.to_pylist()]


class CaptionedTable(PairSource):
    """Winners alone, for supervised fine-tuning and self-play: parquet files or the hub.

    Images are bytes, or a struct of ``bytes`` and ``path`` as ``datasets`` writes images. A picture's id is
    the number of its row.

    Args:
        path: a parquet or arrow file, a folder that holds some, or an id of the hub.
        image: column of the images.
        caption: column of the captions.
        max_pairs: uses only the first so many; all of them without it.
        split: of a folder, only files whose name begins with it and a dash; of the hub, "train" without it.
        revision: of the hub: a commit, tag or branch.
    """

    def __init__(
        self,
        path: str,
        image: str = "image",
        caption: str = "text",
        max_pairs: int | None = None,
        split: str | None = None,
        revision: str | None = None,
    ) -> None:
        check_count("max_pairs", max_pairs, "CaptionedTable")
        rows = table(path, "CaptionedTable", (image, caption), split=split, revision=revision)
        check_texts(rows, "CaptionedTable", caption)
        self._rows = rows if max_pairs is None else rows.select(range(min(max_pairs, len(rows))))
        if not len(self._rows):
            raise ValueError(f"CaptionedTable: path {path!r} holds no pictures")
        self._image, self._caption = image, caption
        self._root = Path(path) if Path(path).is_dir() else Path(path).parent

    @property
    def winners_only(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PairRecord:
        row = self._rows[index]
        image = picture(row[self._image], self._root, f"picture {index}")
        return PairRecord(index, row[self._caption] or "", image, None, 1.0)

    def labels(self) -> list[float]:
        return [1.0] * len(self)

    def prompts(self) -> Sequence[str]:
        return [caption or "" for caption in self._rows[self._caption]]

    def users(self) -> list[str]:
        return [""] * len(self)

    def ids(self) -> list[int]:
        return list(range(len(self)))
