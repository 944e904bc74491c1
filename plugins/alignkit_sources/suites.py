"""Published lists of prompts, from a copy of one's own or from the hub."""

from pathlib import Path
from typing import Literal, get_args

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from alignkit import Prompt, PromptSuite
from alignkit.evaluation.promptfiles import read_prompts
from alignkit_sources.tables import check_texts, table

Split = Literal["test_unique", "validation_unique"]
Grouping = Literal["Category", "Challenge"]
STYLES = ("anime", "concept-art", "paintings", "photo")


class PartiPrompts(PromptSuite):
    """PartiPrompts: 1632 prompts, each of a category and a challenge.

    Yu et al., 2022, https://arxiv.org/abs/2206.10789; the file is that of
    https://github.com/google-research/parti.

    Args:
        path: PartiPrompts.tsv, a folder that holds it, or a data set of the hub.
        grouping: the column that is reported by: "Category" or "Challenge".
        revision: of the hub: a commit, tag or branch.
    """

    known_count = 1632

    def __init__(
        self,
        path: str = "nateraw/parti-prompts",
        grouping: Grouping = "Category",
        revision: str | None = None,
    ) -> None:
        if grouping not in get_args(Grouping):
            raise ValueError(
                f"PartiPrompts: grouping must be one of {', '.join(get_args(Grouping))}, got {grouping!r}"
            )
        self.path, self.grouping, self.revision = path, grouping, revision

    def prompts(self) -> list[Prompt]:
        (file,) = self.files().values()
        return read_prompts(file, "PartiPrompts", prompt="Prompt", category=self.grouping)

    def files(self) -> dict[str, Path]:
        name = "PartiPrompts.tsv"
        return {name: located("PartiPrompts", self.path, name, self.revision)}


class HPDv2Benchmark(PromptSuite):
    """The benchmark prompts of HPSv2: 800 of each of four styles, which are the categories.

    Wu et al., 2023, https://arxiv.org/abs/2306.09341; counts: https://huggingface.co/datasets/zhwang/HPDv2.

    Args:
        path: a folder that holds anime.json, concept-art.json, paintings.json and photo.json, or holds them
            in a folder benchmark; or a data set of the hub that does.
        revision: of the hub: a commit, tag or branch.
    """

    known_count = 3200

    def __init__(self, path: str = "zhwang/HPDv2", revision: str | None = None) -> None:
        self.path, self.revision = path, revision

    def prompts(self) -> list[Prompt]:
        return [
            Prompt(prompt.text, style)
            for style, file in zip(STYLES, self.files().values(), strict=True)
            for prompt in read_prompts(file, "HPDv2Benchmark")
        ]

    def files(self) -> dict[str, Path]:
        names = [f"benchmark/{style}.json" for style in STYLES]
        return {name: located("HPDv2Benchmark", self.path, name, self.revision) for name in names}


class PickAPicUnique(PromptSuite):
    """Held-out prompts of Pick-a-Pic, 500 in each of two splits, each by another user.

    Kirstain et al., 2023, https://arxiv.org/abs/2305.01569, where the splits are described.

    Args:
        path: a parquet or arrow file with a column ``caption``, a folder that holds some, or a data set of
            the hub.
        split: of a folder, only files whose name begins with it and a dash; of the hub, the split.
        revision: of the hub: a commit, tag or branch.
    """

    known_count = 500

    def __init__(
        self,
        path: str = "yuvalkirstain/pickapic_v2_no_images",
        split: Split = "test_unique",
        revision: str | None = None,
    ) -> None:
        if split not in get_args(Split):
            raise ValueError(
                f"PickAPicUnique: split must be one of {', '.join(get_args(Split))}, got {split!r}"
            )
        self.path, self.split, self.revision = path, split, revision

    def prompts(self) -> list[Prompt]:
        rows = table(self.path, "PickAPicUnique", ("caption",), split=self.split, revision=self.revision)
        check_texts(rows, "PickAPicUnique", "caption")
        return [Prompt(caption or "") for caption in rows["caption"]]

    def files(self) -> dict[str, Path]:
        home = Path(self.path)
        paths = sorted(home.glob(f"{self.split}-*")) if home.is_dir() else [home] * home.is_file()
        return {path.name: path for path in paths}


class DrawBench(PromptSuite):
    """DrawBench: 200 prompts in 11 categories.

    Saharia et al., 2022, https://arxiv.org/abs/2205.11487. It was published as a table with the columns
    Prompts and Category, which is saved as CSV.

    Args:
        path: a .csv, .tsv, .jsonl or .parquet file of it.
    """

    known_count = 200

    def __init__(self, path: str) -> None:
        self.path = path

    def prompts(self) -> list[Prompt]:
        return read_prompts(Path(self.path), "DrawBench")

    def files(self) -> dict[str, Path]:
        return {Path(self.path).name: Path(self.path)}


class GenEval(PromptSuite):
    """GenEval: 553 prompts on objects, counts, colours and positions, by its six tags.

    Ghosh et al., 2023, https://arxiv.org/abs/2310.11513. Only its prompts: what a detector finds in the
    pictures is for its own scripts, which read folders of pictures.

    Args:
        path: evaluation_metadata.jsonl of https://github.com/djghosh13/geneval, or a folder that holds it.
    """

    known_count = 553

    def __init__(self, path: str) -> None:
        self.path = path

    def prompts(self) -> list[Prompt]:
        (file,) = self.files().values()
        return read_prompts(file, "GenEval", prompt="prompt", category="tag")

    def files(self) -> dict[str, Path]:
        name, given = "evaluation_metadata.jsonl", Path(self.path)
        return {name: given / name if given.is_dir() else given}


def located(owner: str, path: str, name: str, revision: str | None) -> Path:
    """A file of a data set: the given file itself, one in the given folder, or one of the hub.

    Raises:
        ValueError: there is none.
    """
    given = Path(path)
    if given.is_file():
        return given
    if given.is_dir():
        for file in (given / name, given / Path(name).name):
            if file.is_file():
                return file
        raise ValueError(f"{owner}: there is no {Path(name).name} in {path!r}")
    try:
        return Path(hf_hub_download(path, name, repo_type="dataset", revision=revision))
    except (OSError, HfHubHTTPError, EntryNotFoundError, HFValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{owner}: path {path!r} is not here, and {Path(name).name} of it cannot be had from the hub:\n"
            f"{reason}\nGive a copy: --suite '{{name: {owner}, path: FILE}}'"
        ) from error
