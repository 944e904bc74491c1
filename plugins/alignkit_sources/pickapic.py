"""Pick-a-Pic's schema (Kirstain et al., 2023, https://arxiv.org/abs/2305.01569)."""

from array import array
from pathlib import Path

from alignkit import PairRecord, PairSource
from alignkit_sources.files import check_count
from alignkit_sources.tables import check_numbers, check_texts, picture, table

COLUMNS = ("caption", "jpg_0", "jpg_1", "label_0")
# rows without them have nothing to say
SAID = ("has_label", "are_different")


class PickAPic(PairSource):
    """Pairs with Pick-a-Pic's columns ``caption, jpg_0, jpg_1, label_0``, from parquet files or the hub.

    A column ``user_id`` is read if there is one. Rows that have no label, or two equal images, as
    ``has_label`` and ``are_different`` say, are left out; ties have the label 0.5. A pair's id is the number
    of its row. The files are mapped, not read: their size does not matter.

    Schema: the card of https://huggingface.co/datasets/yuvalkirstain/pickapic_v1; that of v2, which was
    withdrawn, could not be verified.

    Args:
        path: a parquet or arrow file, a folder that holds some, or an id of the hub.
        max_pairs: uses only the first so many rows; all of them without it.
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
        check_count("max_pairs", max_pairs, "PickAPic")
        rows = table(path, "PickAPic", COLUMNS, split=split, revision=revision)
        check_texts(rows, "PickAPic", "caption")
        check_numbers(rows, "PickAPic", "label_0")
        self._rows = rows if max_pairs is None else rows.select(range(min(max_pairs, len(rows))))
        self._has_user = "user_id" in rows.column_names
        self._root = Path(path) if Path(path).is_dir() else Path(path).parent
        said = [self._rows[name] for name in SAID if name in rows.column_names]
        self._labels, self._places = array("d"), array("q")
        for place, (label_0, *facts) in enumerate(zip(self._rows["label_0"], *said, strict=True)):
            # a row without the fact is not known to lack it
            if label_0 is not None and not any(fact is False for fact in facts):
                if not 0 <= label_0 <= 1:
                    raise ValueError(
                        f"PickAPic: row {place} of {path!r}: label_0 must be from 0 to 1, got {label_0}"
                    )
                self._labels.append(label_0)
                self._places.append(place)
        if not self._places:
            raise ValueError(f"PickAPic: path {path!r} holds no pairs with a label")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> PairRecord:
        place = self._places[index]
        row = self._rows[place]
        return PairRecord(
            id=place,
            prompt=row["caption"] or "",
            image_0=picture(row["jpg_0"], self._root, f"pair {place}"),
            image_1=picture(row["jpg_1"], self._root, f"pair {place}"),
            label_0=self._labels[index],
            user=str(row["user_id"]) if self._has_user else "",
        )

    def labels(self) -> list[float]:
        return self._labels.tolist()

    def prompts(self) -> list[str]:
        captions = list(self._rows["caption"])
        return [captions[place] or "" for place in self._places]

    def users(self) -> list[str]:
        if not self._has_user:
            return [""] * len(self)
        users = list(self._rows["user_id"])
        return [str(users[place]) for place in self._places]

    def ids(self) -> list[int]:
        return self._places.tolist()
