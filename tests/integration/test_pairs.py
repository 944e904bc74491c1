"""`alignkit pairs` through the command line: what is drawn, judged, kept, written, resumed and trained on."""

import io
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from alignkit.components import Reward
from alignkit.pairs.files import TOLD
from alignkit.policy import fingerprint
from alignkit.testing import ToyBackbone
from alignkit_diffusers.stable_diffusion import StableDiffusion
from alignkit_emoji.reward import MajorityTaste
from alignkit_sources.pickapic import PickAPic
from tests.integration.test_conditioner import CONFIG as PEOPLE
from tests.integration.test_conditioner import SHORT

Command = Callable[..., tuple[int, str, str]]
CONFIG = """
backbone:
  class_path: alignkit.testing.ToyBackbone
evaluation:
  rewards:
  - MinorityTaste
  - {class_path: tests.integration.test_pairs.Redness, init_args: {factor: 3.0}}
  num_steps: 5
  guidance: 2.0
"""
PROMPTS = ["a red apple", "a green pear", "plum", "a red plum", "green apple"]
REDNESS = "tests.integration.test_pairs.Redness"
TASTE = ("--reward", "MajorityTaste")


class Redness(Reward):
    """Mean of the red channel."""

    differentiable = True

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image_NCHW: Tensor, prompts: list[str]) -> Tensor:
        return self.factor * image_NCHW[:, 0].mean((1, 2))


class Undecided(Reward):
    """Not a number."""

    differentiable = False

    def forward(self, image_NCHW: Tensor, prompts: list[str]) -> Tensor:
        return image_NCHW.new_full((len(prompts),), float("nan"))


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG)
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, "", PROMPTS[0]]) + "\n")
    return "toy.yaml"


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was asked of the toy, call by call."""
    asked: list[list[str]] = []
    generate = ToyBackbone.generate

    def counted(self: ToyBackbone, network: Any, prompts: list[str], **options: Any) -> Tensor:
        asked.append(list(prompts))
        return generate(self, network, prompts, **options)

    monkeypatch.setattr(ToyBackbone, "generate", counted)
    return asked


def pixels(data: bytes) -> Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1).float() / 255


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / "pairs.parquet").to_pylist()
    return found


def make(alignkit: Command, *more: str, config: str = "toy.yaml") -> str:
    given = ("--config", config, "--prompts", "prompts.txt", "--out", "out", *more)
    code, out, err = alignkit("pairs", *given)
    assert code == 0, err
    return out + err


def test_pairs_are_the_best_and_the_worst_with_where_they_come_from(
    alignkit: Command, config: str, tmp_path: Path
) -> None:
    """Everything is computed again from the file: pictures from their seeds, scores from the pictures."""
    said = make(alignkit, *TASTE, "--num", "6", "--batch-size", "4")
    assert "5 prompts x 6 candidates" in said
    assert "5 of 5 files to draw" in said
    found = rows(tmp_path / "out")
    assert [row["caption"] for row in found] == PROMPTS
    backbone = ToyBackbone()
    network = backbone.build_policy()
    candidates = {row["caption"]: [] for row in found}
    for path in sorted((tmp_path / "out" / "candidates").iterdir()):
        for row in pq.read_table(path).to_pylist():
            candidates[row["caption"]].append(row)
    for row in found:
        drawn = candidates[row["caption"]]
        assert len({candidate["seed"] for candidate in drawn}) == 6
        latent = backbone.generate(
            network,
            [row["caption"]] * 6,
            seeds=[candidate["seed"] for candidate in drawn],
            num_steps=5,
            guidance=2.0,
        )
        expected = (backbone.decode(latent) * 255).round() / 255
        seen = torch.stack([pixels(candidate["png"]) for candidate in drawn])
        # one level of 255, where the size of a batch moves the last bits over an edge
        assert_close(seen, expected, rtol=0, atol=1.001 / 255)
        scores = MajorityTaste()(seen, [row["caption"]] * 6).tolist()
        assert [candidate["MajorityTaste"] for candidate in drawn] == pytest.approx(scores, abs=1e-5)
        best, worst = scores.index(max(scores)), scores.index(min(scores))
        first, second = sorted((best, worst))
        assert (row["jpg_0"], row["jpg_1"]) == (drawn[first]["png"], drawn[second]["png"])
        assert (row["seed_0"], row["seed_1"]) == (drawn[first]["seed"], drawn[second]["seed"])
        assert (row["label_0"], row["label_1"]) == (float(first == best), float(second == best))
        assert row["score_0"] == row["MajorityTaste_0"] == pytest.approx(scores[first], abs=1e-5)
        assert row["score_1"] == row["MajorityTaste_1"] == pytest.approx(scores[second], abs=1e-5)
        assert (row["user_id"], row["sampler"]) == ("MajorityTaste", "DDIM")
        assert (row["num_steps"], row["guidance"]) == (5, 2.0)
        assert row["model_0"] == row["model_1"] == fingerprint(dict(network.named_parameters()))


def test_the_source_reads_them_back_and_the_summary_says_what_they_are(
    alignkit: Command, config: str, tmp_path: Path
) -> None:
    make(alignkit, *TASTE, "--num", "3")
    found, source = rows(tmp_path / "out"), PickAPic(str(tmp_path / "out" / "pairs.parquet"))
    assert len(source) == len(found) == 5
    for index, row in enumerate(found):
        record = source[index]
        assert (record.prompt, record.image_0, record.image_1, record.label_0, record.user) == (
            row["caption"],
            row["jpg_0"],
            row["jpg_1"],
            row["label_0"],
            "MajorityTaste",
        )
    summary = json.loads((tmp_path / "out" / "pairs.json").read_text())
    assert (summary["pairs"], summary["prompts"], summary["candidates"]) == (5, 5, 15)
    better = [max(row["score_0"], row["score_1"]) for row in found]
    assert summary["mean_score"]["better"] == pytest.approx(np.mean(better))
    told = json.loads(pq.read_schema(tmp_path / "out" / "pairs.parquet").metadata[TOLD])
    assert told["provenance"] == summary["provenance"]
    assert told["command"].startswith("alignkit pairs --config toy.yaml --prompts prompts.txt --out out")
    assert set(told["versions"]) == {"alignkit", "torch", "diffusers", "transformers"}
    with Image.open(tmp_path / "out" / "pairs.png") as sheet:
        assert sheet.width > 5 * 96
        assert sheet.height > 2 * 96


def test_what_is_killed_goes_on_and_comes_out_the_same(
    alignkit: Command, config: str, tmp_path: Path, draws: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*TASTE, "--num", "3", "--batch-size", "6")
    make(alignkit, *options)
    whole = pq.read_table(tmp_path / "out" / "pairs.parquet")
    summary = (tmp_path / "out" / "pairs.json").read_text()
    assert [len(asked) for asked in draws] == [6, 6, 3]
    (tmp_path / "out").rename(tmp_path / "first")
    draws.clear()
    counted = ToyBackbone.generate

    def killed(self: ToyBackbone, network: Any, prompts: list[str], **given: Any) -> Tensor:
        if len(draws) == 1:
            signal.raise_signal(signal.SIGINT)
        return counted(self, network, prompts, **given)

    monkeypatch.setattr(ToyBackbone, "generate", killed)
    stopped = alignkit("pairs", "--config", "toy.yaml", "--prompts", "prompts.txt", "--out", "out", *options)
    assert stopped[::2] == (130, "alignkit: stopped; what was done is kept; call this again to go on\n")
    assert not (tmp_path / "out" / "pairs.parquet").exists()
    monkeypatch.setattr(ToyBackbone, "generate", counted)
    draws.clear()
    assert "2 of 3 files to draw" in make(alignkit, *options)
    assert [len(asked) for asked in draws] == [6, 3]
    assert pq.read_table(tmp_path / "out" / "pairs.parquet").equals(whole, check_metadata=True)
    assert (tmp_path / "out" / "pairs.json").read_text() == summary
    draws.clear()
    assert "0 of 3 files to draw" in make(alignkit, *options)
    assert draws == []


def test_a_damaged_file_is_drawn_again(
    alignkit: Command, config: str, tmp_path: Path, draws: list[list[str]]
) -> None:
    options = (*TASTE, "--num", "2", "--batch-size", "4")
    make(alignkit, *options)
    whole = pq.read_table(tmp_path / "out" / "pairs.parquet")
    part = tmp_path / "out" / "candidates" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:200])
    draws.clear()
    make(alignkit, *options)
    assert draws == [[PROMPTS[2]] * 2 + [PROMPTS[3]] * 2]
    assert pq.read_table(tmp_path / "out" / "pairs.parquet").equals(whole)


def test_a_prompt_draws_the_same_whatever_else_is_drawn(
    alignkit: Command, config: str, tmp_path: Path
) -> None:
    make(alignkit, *TASTE, "--num", "2", "--batch-size", "2")
    alone = ("--config", config, "--prompt", PROMPTS[3], "--num", "2", "--batch-size", "2", *TASTE)
    assert alignkit("pairs", *alone, "--out", "alone")[0] == 0
    assert rows(tmp_path / "alone") == [rows(tmp_path / "out")[3]]
    assert alignkit("pairs", *alone, "--out", "other", "--seed", "1")[0] == 0
    (other,) = rows(tmp_path / "other")
    assert other["seed_0"] != rows(tmp_path / "alone")[0]["seed_0"]


def test_too_large_a_margin_is_told_and_a_smaller_one_draws_nothing_again(
    alignkit: Command, config: str, tmp_path: Path, draws: list[list[str]]
) -> None:
    given = ("pairs", "--config", config, "--prompts", "prompts.txt", "--out", "out", *TASTE)
    code, _, err = alignkit(*given, "--margin", "1e6")
    assert code == 2
    assert "--margin 1e+06: no two candidates of a prompt differ by more" in err
    assert not (tmp_path / "out" / "pairs.parquet").exists()
    draws.clear()
    make(alignkit, *TASTE)
    assert draws == []
    spans = sorted(abs(row["score_0"] - row["score_1"]) for row in rows(tmp_path / "out"))
    (tmp_path / "out" / "pairs.parquet").rename(tmp_path / "without_margin.parquet")
    margin = (spans[1] + spans[2]) / 2
    assert "3 pairs of 5 prompts, 2 without" in make(alignkit, *TASTE, "--margin", str(margin))
    assert all(abs(row["score_0"] - row["score_1"]) > margin for row in rows(tmp_path / "out"))


def test_all_pairs_above_the_margin(alignkit: Command, config: str, tmp_path: Path) -> None:
    make(alignkit, *TASTE, "--num", "4", "--keep", "all")
    found = rows(tmp_path / "out")
    assert len(found) == 5 * 6
    assert {row["label_0"] for row in found} == {0.0, 1.0}
    for row in found:
        assert (row["label_0"] == 1) == (row["score_0"] > row["score_1"])
        assert row["label_0"] + row["label_1"] == 1
    assert len({(row["seed_0"], row["seed_1"]) for row in found}) == 5 * 6


def test_several_rewards_are_weighed(alignkit: Command, config: str, tmp_path: Path) -> None:
    """Redness with settings of its own, minus twice the taste."""
    judged = f"{{class_path: {REDNESS}, init_args: {{factor: 10.0}}, weight: 1}}"
    make(alignkit, "--reward", judged, "--reward", "MajorityTaste=-2")
    for row in rows(tmp_path / "out"):
        for side in (0, 1):
            image = pixels(row[f"jpg_{side}"])
            assert row[f"Redness_{side}"] == pytest.approx(10 * float(image[0].mean()), abs=1e-4)
            score = row[f"Redness_{side}"] - 2 * row[f"MajorityTaste_{side}"]
            assert row[f"score_{side}"] == pytest.approx(score)
        assert row["user_id"] == "Redness+MajorityTaste"
        assert (row["label_0"] == 1) == (row["score_0"] > row["score_1"])


def test_a_judge_that_reports_is_warned_of_and_has_its_settings(
    alignkit: Command, config: str, tmp_path: Path
) -> None:
    assert "warning" not in make(alignkit, *TASTE)
    (tmp_path / "out").rename(tmp_path / "first")
    said = make(alignkit, "--reward", REDNESS)
    assert "alignkit: warning: Redness judges the pairs, and stands in evaluation.rewards" in said
    for row in rows(tmp_path / "out"):
        assert row["Redness_0"] == pytest.approx(3 * float(pixels(row["jpg_0"])[0].mean()), abs=1e-4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--seed", "1"), "part-00000.parquet is of another seed: 0, not 1"),
        (("--num", "3"), "part-00000.parquet is of another images_per_prompt: 2, not 3"),
        (("--guidance", "1"), "part-00000.parquet is of another guidance: 2.0, not 1.0"),
        (("--margin", "0.1"), "pairs.parquet is of another margin: 0.0, not 0.1"),
        (("--keep", "all"), "pairs.parquet is of another keep: 'best-worst', not 'all'"),
    ],
)
def test_other_pairs_are_not_overwritten(
    alignkit: Command, config: str, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    options = ("--num", "2", *TASTE)
    make(alignkit, *options)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    given = ("--config", config, "--prompts", "prompts.txt", "--out", "out", *options, *more)
    if "part" in message:
        (tmp_path / "out" / "pairs.parquet").rename(tmp_path / "pairs.parquet")
        before.pop(tmp_path / "out" / "pairs.parquet")
    code, _, err = alignkit("pairs", *given)
    assert code == 2
    assert message in err
    assert "Give another --out, or move it away" in err
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_strangers_file_is_not_overwritten(alignkit: Command, config: str, tmp_path: Path) -> None:
    make(alignkit, *TASTE)
    path = tmp_path / "out" / "pairs.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    given = ("--config", config, "--prompts", "prompts.txt", "--out", "out", *TASTE)
    code, _, err = alignkit("pairs", *given)
    assert code == 2
    assert "pairs.parquet is not of this command; give another --out" in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--prompt a --out out", "one of the arguments --config --run is required"),
        ("--config toy.yaml --out out", "one of the arguments --prompts --prompt is required"),
        ("--config toy.yaml --prompt a --out out", "--reward: name who judges the candidates; installed: "),
        ("--config toy.yaml --prompt a --out out --reward Tast", "unknown reward 'Tast'"),
        (
            "--config toy.yaml --prompt a --out out --reward MajorityTaste=x",
            "--reward MajorityTaste=x: its weight must be a number other than 0, got 'x'",
        ),
        (
            "--config toy.yaml --prompt a --out out --reward MajorityTaste --reward MajorityTaste",
            "--reward MajorityTaste: MajorityTaste judges already; name each once",
        ),
        ("--config toy.yaml --prompt a --out out --num 1", "--num must be at least 2, got 1"),
        ("--config toy.yaml --prompt a --out out --margin -1", "--margin must be at least 0, got -1.0"),
        ("--config toy.yaml --prompt a --out out --margin nan", "--margin must be at least 0, got nan"),
        ("--config toy.yaml --prompts none.txt --out out", "--prompts: there is no file 'none.txt'"),
        ("--config toy.yaml --prompts empty.txt --out out", "--prompts empty.txt: there are none in it"),
        ("--run nowhere --prompt a --out out", "--run nowhere: no config.yaml there"),
        ("--config none.yaml --prompt a --out out", "no config 'none.yaml'"),
        (
            "--config toy.yaml --prompt a --out out --reward tests.integration.test_pairs.Undecided",
            "Undecided: must give a finite number for every image, got [nan",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(
    alignkit: Command, config: str, tmp_path: Path, given: str, message: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    code, _, err = alignkit("pairs", *given.split())
    assert code == 2
    assert err.startswith(f"alignkit: error: {message}")
    assert not (tmp_path / "out").exists()


TRAINED = """
seed_everything: 3
objective: {{name: DiffusionDPO, beta: 200.0}}
sampler: SharedNoise
backbone: {{name: StableDiffusion, path: {pipeline}, lora: {{rank: 2}}}}
optimizer: {{name: AdamW, lr: 1.0e-2}}
data:
  train: {{class_path: tests.integration.conftest.NoisyPairs}}
  batch_size: 4
  resolution: 16
evaluation: {{num_steps: 2, guidance: 2.0}}
samples: {{num_prompts: 0}}
trainer: {{accelerator: cpu, devices: 1, max_steps: 2, log_every_n_steps: 1, enable_progress_bar: false}}
"""


def test_pairs_of_a_base_train_and_those_of_the_run_are_others(
    alignkit: Command, tmp_path: Path, pipeline: Path
) -> None:
    """Base, pairs, run, pairs of the run: real classes all the way. A base's adapters change nothing."""
    (tmp_path / "tiny.yaml").write_text(TRAINED.format(pipeline=pipeline.as_posix()))
    (tmp_path / "prompts.txt").write_text("\n".join("abcdefgh"))
    options = (*TASTE, "--num", "2")
    make(alignkit, *options, config="tiny.yaml")
    base = StableDiffusion(str(pipeline)).build_policy()
    assert {row["model_0"] for row in rows(tmp_path / "out")} == {fingerprint(dict(base.named_parameters()))}
    assert "0 of 1 files to draw" in make(alignkit, *options, config="tiny.yaml")
    # the same weights draw other pictures in another type
    half = TRAINED.format(pipeline=pipeline.as_posix()).replace("path:", "frozen_dtype: bfloat16, path:")
    (tmp_path / "half.yaml").write_text(half)
    given = ("--config", "half.yaml", "--prompts", "prompts.txt", "--out", "out", *options)
    code, _, err = alignkit("pairs", *given)
    assert code == 2
    assert "is of another model" in err
    source = "{name: PickAPic, path: out/pairs.parquet}"
    code, _, err = alignkit("fit", "--config", "tiny.yaml", "--run", "run", "--data.train", source)
    assert code == 0, err
    assert "8 training pairs, 0 ties dropped" in err
    given = ("pairs", "--run", "run", "--prompts", "prompts.txt", "--out", "later", *options)
    code, _, err = alignkit(*given)
    assert code == 0, err
    before, after = rows(tmp_path / "out"), rows(tmp_path / "later")
    trained = StableDiffusion(str(pipeline)).load(tmp_path / "run")
    assert {row["model_0"] for row in after} == {fingerprint(dict(trained.named_parameters()))}
    assert {row["model_0"] for row in after} != {row["model_0"] for row in before}
    assert after[0]["num_steps"] == 2
    first = {row["seed_0"]: row["jpg_0"] for row in before} | {row["seed_1"]: row["jpg_1"] for row in before}
    second = {row["seed_0"]: row["jpg_0"] for row in after} | {row["seed_1"]: row["jpg_1"] for row in after}
    assert first.keys() == second.keys()
    assert all(first[seed] != second[seed] for seed in first)


def test_a_run_that_knows_people_draws_for_whom_is_named(
    alignkit: Command, tmp_path: Path, pipeline: Path
) -> None:
    (tmp_path / "people.yaml").write_text(PEOPLE.format(pipeline=pipeline.as_posix()))
    code, _, err = alignkit("fit", "--config", "people.yaml", "--run", "run", *SHORT)
    assert code == 0, err
    given = ("pairs", "--run", "run", "--prompt", "a", "--num", "2", *TASTE)
    for user in ("u0", "u1"):
        code, _, err = alignkit(*given, "--user", user, "--out", user)
        assert code == 0, err
    (first,), (second,) = rows(tmp_path / "u0"), rows(tmp_path / "u1")
    assert {first["seed_0"], first["seed_1"]} == {second["seed_0"], second["seed_1"]}
    assert first["model_0"] == second["model_0"]
    assert {first["jpg_0"], first["jpg_1"]} & {second["jpg_0"], second["jpg_1"]} == set()
    code, _, err = alignkit(*given, "--user", "u1", "--out", "u0")
    assert code == 2
    assert "is of another audience" in err


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("a_file", "--out a_file: cannot be written to; give another folder"),
        ("a_file/sub", "--out a_file/sub: cannot be written to; give another folder"),
    ],
)
def test_a_folder_that_cannot_be_written_is_a_mistake(
    alignkit: Command, config: str, tmp_path: Path, out: str, message: str
) -> None:
    (tmp_path / "a_file").touch()
    given = ("pairs", "--config", config, "--prompt", "a cat", *TASTE, "--out", out)
    code, _, err = alignkit(*given)
    assert code == 2, err
    assert message in err


def test_prompts_of_a_table_are_those_of_its_column(alignkit: Command, config: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('id,prompt\n1,"a red, round apple"\n2,a cat\n')
    given = ("--prompts", "p.csv", "--num", "2", *TASTE)
    assert "2 prompts x 2 candidates" in make(alignkit, *given)
    assert {row["caption"] for row in rows(tmp_path / "out")} <= {"a red, round apple", "a cat"}
