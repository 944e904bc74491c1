"""The held-out prompts of the shipped judgements, for evaluation."""

from pathlib import Path

import pyarrow.parquet as pq

from alignkit import Prompt, PromptSuite
from alignkit_emoji.pictures import FOLDER, SETS
from alignkit_emoji.source import EmojiPairs

PAIRS, CONCEPTS = FOLDER / "data" / "pairs.parquet", FOLDER / "data" / f"{SETS[0]}.parquet"


class Emoji(PromptSuite):
    """The 57 held-out prompts of the emoji pairs, in two categories: the Unicode groups of their concepts."""

    known_count = 57

    def prompts(self) -> list[Prompt]:
        rows = pq.read_table(CONCEPTS, columns=["concept", "group"]).to_pylist()
        groups = {row["concept"]: row["group"] for row in rows}
        return [Prompt(text, groups[text]) for text in dict.fromkeys(EmojiPairs("test").prompts())]

    def files(self) -> dict[str, Path]:
        return {path.name: path for path in (PAIRS, CONCEPTS)}
