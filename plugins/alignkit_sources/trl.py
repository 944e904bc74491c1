"""Tables in the layout of TRL's preference data, with images in place of answers."""

from pathlib import Path

from alignkit import PairRecord, PairSource
from alignkit_sources.files import check_count
from alignkit_sources.tables import check_texts, picture, table

COLUMNS = ("prompt", "chosen", "rejected")


class TRLPairs(PairSource):
    """Pairs with the columns ``prompt, chosen, rejected``, from parquet or arrow files or the hub.

    Both images are bytes, or a struct of ``bytes`` and ``path`` as ``datasets`` writes images. Every label is
    1, and a pair's id is the number of its row. A column ``user`` is read if there is one.

    Layout: explicit prompts of https://huggingface.co/docs/trl/dataset_formats#preference. TRL itself has
    texts there; images in their place are a convention of ours.

    Args:
        path: a parquet or arrow file, a folder that holds some, or an id of the hub.
        max_pairs: uses only the first so many; all of them without it.
        split: of a folder, only files whose name begins with it and a dash; of the hub, "train" without it.
        revision: of the hub: a commit, tag or branch.
    """

    def __init__(
        self,
        path: str,
        max_pairs: int | None = None,
        split: str | None = None,
        revision: str | None = None,
    ) -> None:
        check_count("max_pairs", max_pairs, "TRLPairs")
        rows = table(path, "TRLPairs", COLUMNS, split=split, revision=revision)
        check_texts(rows, "TRLPairs", "prompt")
        self._rows = rows if max_pairs is None else rows.select(range(min(max_pairs, len(rows))))
        if not len(self._rows):
            raise ValueError(f"TRLPairs: path {path!r} holds no pairs")
        self._has_user = "user" in rows.column_names
        self._root = Path(path) if Path(path).is_dir() else Path(path).parent

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PairRecord:
        row = self._rows[index]
        image_0, image_1 = (
            picture(row[name], self._root, f"pair {index}") for name in ("chosen", "rejected")
        )
        return PairRecord(
            index, row["prompt"] or "", image_0, image_1, 1.0, str(row["user"]) if self._has_user else ""
        )

    def labels(self) -> list[float]:
        return [1.0] * len(self)

    def prompts(self) -> list[str]:
        return [prompt or "" for prompt in self._rows["prompt"]]

    def users(self) -> list[str]:
        return [str(user) for user in self._rows["user"]] if self._has_user else [""] * len(self)

    def ids(self) -> list[int]:
        return list(range(len(self)))
