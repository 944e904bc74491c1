"""Suites of prompts: by name, from files, what is said of them."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignkit.catalog import discover
from alignkit.evaluation.promptfiles import read_prompts
from alignkit.evaluation.results import Prompt
from alignkit.evaluation.suites import PromptFile, drawn_of, named_suite, read_suite
from alignkit.mistakes import UsageError

ROWS = [{"prompt": "a cat", "category": "animals"}, {"prompt": "a car", "category": ""}]


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"prompts{suffix}"
    if suffix == ".txt":
        path.write_text("\ufeffa cat\n\na car\n", encoding="utf-8")
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{**row, "picture": b"..."} for row in ROWS]), path)
    else:
        mark = {".csv": ",", ".tsv": "\t"}[suffix]
        path.write_text("".join(f"{mark.join(row)}\n" for row in (ROWS[0], *(r.values() for r in ROWS))))
    return path


@pytest.mark.parametrize("suffix", [".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_format_says_the_same(suffix: str, tmp_path: Path) -> None:
    name, suite = named_suite(discover(), str(written(tmp_path, suffix)))
    read = read_suite(name, suite)
    category = "" if suffix == ".txt" else "animals"
    assert read.prompts == (Prompt("a cat", category), Prompt("a car"))
    assert read.name == "prompts"
    content = (tmp_path / f"prompts{suffix}").read_bytes()
    assert read.files == {f"prompts{suffix}": hashlib.sha256(content).hexdigest()}


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("id,what,kind\n1,a cat,animals\n")
    with pytest.raises(ValueError, match=r"has no column prompt or .*, only id, what, kind; rename one, or"):
        PromptFile(str(path)).prompts()
    said = f"{{path: {path}, prompt: what, category: kind}}"
    name, suite = named_suite(discover(), said)
    assert (name, suite.prompts()) == ("x", [Prompt("a cat", "animals")])
    with pytest.raises(ValueError, match="has no column nothing, only id, what, kind"):
        PromptFile(str(path), prompt="what", category="nothing").prompts()


def test_a_suite_is_found_in_any_case_and_the_nearest_is_named() -> None:
    catalog = discover()
    assert named_suite(catalog, "emoji")[0] == "Emoji"
    assert named_suite(catalog, "{name: DrawBench, path: x.csv}")[0] == "DrawBench"
    with pytest.raises(ValueError, match=r"no suite and no file.*; did you mean PartiPrompts\?"):
        named_suite(catalog, "partiprompt")
    with pytest.raises(UsageError, match=r"DrawBench needs path"):
        named_suite(catalog, "DrawBench")
    with pytest.raises(ValueError, match=r"there is no file 'no-such\.txt'"):
        named_suite(catalog, "no-such.txt")[1].prompts()


def test_each_prompt_is_drawn_once_and_what_was_left_out_is_told() -> None:
    told = [Prompt(" a cat ", "animals"), Prompt(""), Prompt("a cat", "pets"), Prompt("a car"), Prompt("  ")]
    suite = drawn_of("mine", told)
    assert suite.prompts == (Prompt("a cat", "animals"), Prompt("a car"))
    assert suite.remarks == ("2 empty prompts were left out", "1 prompts that come again are drawn once")
    with pytest.raises(ValueError, match="--suite mine: there are no prompts in it"):
        drawn_of("mine", [Prompt(" ")])


def test_some_prompts_are_spread_evenly() -> None:
    suite = drawn_of("mine", [Prompt(f"number {i}") for i in range(10)], max_prompts=4)
    assert [prompt.text for prompt in suite.prompts] == ["number 0", "number 2", "number 5", "number 7"]
    assert suite.known == 10
    assert len(drawn_of("mine", suite.prompts, max_prompts=99).prompts) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "{", "cannot be read: Expecting property name"),
        ("x.jsonl", '{"prompt": 3}\n', "row 1: prompt must be a text, got 3"),
        ("x.json", '["a", {"prompt": "b"}]', "must hold texts or objects with named values, not both"),
        ("x.yaml", "", "prompts are read from .txt, .jsonl, .json"),
        ("x.parquet", "no parquet", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_told(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name, "--suite")


def test_lines_end_where_files_end_them(tmp_path: Path) -> None:
    """Other separators of Unicode's belong to a prompt, and JSON may have them within a text."""
    text = tmp_path / "PROMPTS.TXT"
    text.write_bytes("a\u2028cat\r\n\x0ca car\nno end".encode())
    assert read_prompts(text, "it") == [Prompt("a\u2028cat"), Prompt("\x0ca car"), Prompt("no end")]
    lines = tmp_path / "p.jsonl"
    lines.write_text('{"prompt": "a\u2028cat"}\n', encoding="utf-8")
    assert read_prompts(lines, "it") == [Prompt("a\u2028cat")]


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_texts_of_every_arrow_type_are_read(kind: pa.DataType, tmp_path: Path) -> None:
    prompts = pa.array(["a cat", "a car"]).cast(kind)
    pictures = pa.array([b"...", None], pa.large_binary())
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": prompts, "category": [1, 2], "picture": pictures}), path)
    assert read_prompts(path, "it") == [Prompt("a cat", "1"), Prompt("a car", "2")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"un caf\xe9", r"a.txt: is no text in UTF-8 \(.*0xe9.*\); save it as such"),
        (
            "a.jsonl",
            b'{"prompt": "x"}\n\n{"prompt": }\n',
            "a.jsonl: cannot be read: line 3, column 12: Expecting",
        ),
        ("a.json", b"[" * 100_000, "a.json: cannot be read: .*recursion"),
    ],
)
def test_files_that_cannot_be_read_say_where(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name, "it")


def test_a_table_without_texts_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": [["a cat"]]}), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=r"has no column prompt or .*, only such as hold no text; rename"):
        read_prompts(tmp_path / "p.parquet", "it")
