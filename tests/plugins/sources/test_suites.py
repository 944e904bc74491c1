"""Published lists of prompts, in the formats that they are published in."""

from pathlib import Path

import pytest

from alignkit.evaluation.results import Prompt
from alignkit.evaluation.suites import read_suite
from alignkit_sources.suites import (
    DrawBench,
    GenEval,
    HPDv2Benchmark,
    PartiPrompts,
    PickAPicUnique,
)
from tests.plugins.sources import prompt_lists


def test_parti_prompts_by_category_or_by_challenge(tmp_path: Path) -> None:
    given = prompt_lists.parti(tmp_path)
    assert PartiPrompts(**given).prompts() == [
        Prompt("bond", "Abstract"),
        Prompt('a sign that says "Deep Learning"', "Arts"),
        Prompt("the moon", "Outdoor Scenes"),
    ]
    by_challenge = PartiPrompts(str(tmp_path), grouping="Challenge").prompts()
    assert [prompt.category for prompt in by_challenge] == ["Basic", "Writing & Symbols", "Basic"]


def test_styles_of_hpsv2_are_its_categories_wherever_the_files_are(tmp_path: Path) -> None:
    given = prompt_lists.hpd(tmp_path)
    prompts = HPDv2Benchmark(**given).prompts()
    assert prompts[:2] == [Prompt("a castle, anime", "anime"), Prompt("a fox, anime", "anime")]
    assert [prompt.category for prompt in prompts[::2]] == ["anime", "concept-art", "paintings", "photo"]
    assert HPDv2Benchmark(str(tmp_path / "benchmark")).prompts() == prompts


def test_splits_of_pick_a_pic(tmp_path: Path) -> None:
    given = prompt_lists.pickapic(tmp_path)
    assert PickAPicUnique(**given).prompts() == [Prompt("a cat"), Prompt("a dog")]
    other = PickAPicUnique(**given, split="validation_unique")
    assert other.prompts() == [Prompt("a bird")]
    assert list(other.files()) == ["validation_unique-00000-of-00001.parquet"]


def test_draw_bench_and_geneval(tmp_path: Path) -> None:
    assert DrawBench(**prompt_lists.drawbench(tmp_path)).prompts() == [
        Prompt("A red car.", "Colors"),
        Prompt("A cube, and a sphere.", "Positional"),
    ]
    assert GenEval(**prompt_lists.geneval(tmp_path)).prompts() == [
        Prompt("a photo of a bench", "single_object"),
        Prompt("a photo of two cups", "counting"),
    ]


def test_another_number_of_prompts_is_told(tmp_path: Path) -> None:
    suite = read_suite("DrawBench", DrawBench(**prompt_lists.drawbench(tmp_path)))
    assert suite.remarks == ("DrawBench is known to have 200 prompts, here are 2",)
    assert len(suite.prompts) == suite.known == 2
    assert list(suite.files) == ["drawbench.csv"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"PartiPrompts: there is no PartiPrompts\.tsv in"):
        PartiPrompts(str(tmp_path)).prompts()
    with pytest.raises(ValueError, match=r"(?s)HPDv2Benchmark: path 'zhwang/HPDv2' is not here.*Give a copy"):
        HPDv2Benchmark().prompts()
    with pytest.raises(ValueError, match=r"GenEval: there is no file '.*evaluation_metadata\.jsonl'"):
        GenEval(str(tmp_path)).prompts()
