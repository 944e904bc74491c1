"""`alignkit evaluate` through the command line: what is drawn, kept, judged, compared and gone on with."""

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from alignkit.cli import main
from alignkit.components import Features, Reward
from alignkit.evaluation import manifest
from alignkit.evaluation.drawing import picture_seed
from alignkit.evaluation.report import read
from alignkit.policy import fingerprint
from alignkit.testing import ToyBackbone
from alignkit.testing.toys import ToyNetwork
from tests.runs import environment

Command = Callable[..., tuple[int, str, str]]
CONFIG = """
backbone:
  class_path: alignkit.testing.ToyBackbone
  init_args: {seed: 0}
data:
  validation:
    class_path: alignkit.testing.ToyPairs
evaluation:
  rewards:
  - {class_path: tests.integration.test_evaluate.Redness, init_args: {factor: 3.0}}
  features: {class_path: tests.integration.test_evaluate.Corners}
  images_per_prompt: 2
  num_steps: 3
  guidance: 2.0
  seed: 70
"""
BLUENESS, REDNESS = (f"tests.integration.test_evaluate.{name}" for name in ("Blueness", "Redness"))
EMOJI = ("--suite", "emoji", "--reward", "MajorityTaste")
PROMPTS = ["a red apple", "a green pear", "a red plum", "a green apple", "a red pear", "a green plum"]


class Redness(Reward):
    """Mean of the red channel."""

    differentiable = True

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.factor * image_NCHW[:, 0].mean((1, 2))


class Blueness(Reward):
    """Mean of the blue channel."""

    differentiable = True

    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        return image_NCHW[:, 2].mean((1, 2))


class Undecided(Reward):
    """Not a number."""

    differentiable = False

    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        return image_NCHW.new_full((len(prompts),), float("nan"))


class Corners(Features):
    """The two corners on top, as a direction."""

    def forward(self, image_NCHW: Tensor) -> Tensor:
        corner_N6 = torch.cat([image_NCHW[:, :, 0, 0], image_NCHW[:, :, 0, -1]], 1) - 0.5
        return torch.nn.functional.normalize(corner_N6, dim=1)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run: a network of other weights than its base."""
    folder = tmp_path / "runs" / "demo"
    ToyBackbone().save(ToyNetwork(1), folder)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, int]]]:
    """What was asked of the toy, call by call: prompts and seeds."""
    asked: list[list[tuple[str, int]]] = []
    generate = ToyBackbone.generate

    def counted(
        self: ToyBackbone, network: Any, prompts: list[str], *, seeds: list[int], **rest: Any
    ) -> Tensor:
        asked.append(list(zip(prompts, seeds, strict=True)))
        return generate(self, network, prompts, seeds=seeds, **rest)

    monkeypatch.setattr(ToyBackbone, "generate", counted)
    return asked


def evaluate(alignkit: Command, *more: str, run: str = "runs/demo", out: str = "out") -> str:
    code, said, err = alignkit("evaluate", "--run", run, "--device", "cpu", "--out", out, *more)
    assert code == 0, err
    return said + err


def report(folder: Path) -> dict[str, Any]:
    """What the report says, but for the time."""
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    del content["manifest"]["times"], content["manifest"]["command"]
    return content


def pixels(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).float() / 255


def test_a_run_alone_is_compared_with_its_base_on_its_held_out_prompts(
    alignkit: Command, run: Path, tmp_path: Path
) -> None:
    """Everything is computed again: pictures from prompts and seeds, figures from the pictures."""
    said = evaluate(alignkit)
    assert "2 models x 6 prompts x 2 seeds: 24 of 24 pictures to draw, 0 that are there to judge" in said
    found = read(tmp_path / "out")
    assert [model.name for model in found.models] == ["base", "aligned"]
    assert [prompt.text for prompt in found.results.prompts] == PROMPTS
    assert found.results.seeds == (70, 71)
    backbone = ToyBackbone()
    for number, name in enumerate(("base", "aligned")):
        for p, prompt in enumerate(PROMPTS):
            seeds = [picture_seed(prompt, 70), picture_seed(prompt, 71)]
            latent = backbone.generate(
                ToyNetwork(number), [prompt] * 2, seeds=seeds, num_steps=3, guidance=2.0
            )
            kept = torch.stack([pixels(tmp_path / "out" / path) for path in found.pictures[name][p]])
            # one level of 255, where the size of a batch moves the last bits over an edge
            assert_close(kept, backbone.decode(latent), rtol=0, atol=1.001 / 255)
            scores = found.results.scores[name]
            np.testing.assert_allclose(scores.reward_PS["Redness"][p], 3 * kept[:, 0].mean((1, 2)), rtol=1e-6)
            assert scores.feature_PSD is not None
            np.testing.assert_allclose(scores.feature_PSD[p], Corners()(kept), rtol=0, atol=1e-6)
    manifest = found.manifest
    assert manifest["models"]["aligned"]["weights"] == fingerprint(dict(ToyNetwork(1).named_parameters()))
    assert manifest["sampling"]["num_steps"] == 3
    assert manifest["seeds"] == [70, 71]
    assert manifest["command"].startswith("alignkit evaluate --run runs/demo")
    assert (tmp_path / "out" / "report.html").is_file()
    with Image.open(tmp_path / "out" / found.pictures["aligned"][0][1]) as picture:
        assert picture.info["prompt"] == PROMPTS[0]
        assert (picture.info["seed"], picture.info["model"]) == ("71", "aligned")


def test_a_picture_does_not_depend_on_what_else_is_drawn(
    alignkit: Command, run: Path, tmp_path: Path, draws: list[list[tuple[str, int]]]
) -> None:
    """Other prompts beside it, in another order and other batches: the same noise, and the same picture."""
    evaluate(alignkit)
    (tmp_path / "other.txt").write_text("a plum\na green pear\na red apple\n")
    evaluate(
        alignkit, "--suite", "other.txt", "--batch-size", "5", "--seeds", "1", "--seed", "71", out="other"
    )
    first, other = read(tmp_path / "out"), read(tmp_path / "other")
    for name in ("base", "aligned"):
        for prompt in ("a green pear", "a red apple"):
            whole = first.pictures[name][PROMPTS.index(prompt)][1]
            place = [item.text for item in other.results.prompts].index(prompt)
            alone = other.pictures[name][place][0]
            assert_close(
                pixels(tmp_path / "out" / whole), pixels(tmp_path / "other" / alone), rtol=0, atol=1.001 / 255
            )
    # both models are asked for the same noise
    asked = sorted(pair for call in draws[:2] for pair in call)
    assert len(asked) == 24
    assert asked[::2] == asked[1::2]


def test_what_is_killed_goes_on_and_comes_out_the_same(
    alignkit: Command,
    run: Path,
    tmp_path: Path,
    draws: list[list[tuple[str, int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate(alignkit, "--batch-size", "5", out="whole")
    assert [len(call) for call in draws] == [5, 5, 2, 5, 5, 2]
    counted = ToyBackbone.generate

    def killed(self: ToyBackbone, network: Any, prompts: list[str], **given: Any) -> Tensor:
        if len(draws) == 4:
            raise SystemExit(9)
        return counted(self, network, prompts, **given)

    draws.clear()
    monkeypatch.setattr(ToyBackbone, "generate", killed)
    assert alignkit("evaluate", "--run", "runs/demo", "--batch-size", "5", "--out", "out")[0] == 9
    assert not (tmp_path / "out" / "report.json").exists()
    monkeypatch.setattr(ToyBackbone, "generate", counted)
    draws.clear()
    said = evaluate(alignkit, "--batch-size", "5")
    assert "7 of 24 pictures to draw" in said
    assert [len(call) for call in draws] == [5, 2]
    assert report(tmp_path / "out") == report(tmp_path / "whole")
    draws.clear()
    assert "0 of 24 pictures to draw" in evaluate(alignkit, "--batch-size", "5")
    assert draws == []
    assert report(tmp_path / "out") == report(tmp_path / "whole")


def test_pictures_without_their_scores_are_of_a_batch_that_was_lost(
    alignkit: Command, run: Path, tmp_path: Path, draws: list[list[tuple[str, int]]]
) -> None:
    """A kill between pictures and scores, and a file of scores that is damaged: that batch comes again."""
    evaluate(alignkit, "--batch-size", "12")
    whole, draws[:] = report(tmp_path / "out"), []
    first, second = sorted((tmp_path / "out" / "scores").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    evaluate(alignkit, "--batch-size", "12")
    assert [len(call) for call in draws] == [12, 12]
    assert report(tmp_path / "out") == whole


def test_another_reward_judges_what_is_there(
    alignkit: Command, run: Path, tmp_path: Path, draws: list[list[tuple[str, int]]]
) -> None:
    """Pictures that were kept score exactly as fresh ones."""
    evaluate(alignkit)
    draws.clear()
    both = ("--reward", REDNESS, "--reward", BLUENESS)
    said = evaluate(alignkit, *both)
    assert "0 of 24 pictures to draw, 24 that are there to judge" in said
    assert draws == []
    evaluate(
        alignkit, "--reward", "tests.integration.test_evaluate.Redness", "--reward", BLUENESS, out="fresh"
    )
    kept, fresh = read(tmp_path / "out"), read(tmp_path / "fresh")
    for name in ("base", "aligned"):
        for reward in ("Redness", "Blueness"):
            np.testing.assert_array_equal(
                kept.results.scores[name].reward_PS[reward], fresh.results.scores[name].reward_PS[reward]
            )
    assert report(tmp_path / "out")["comparisons"] == report(tmp_path / "fresh")["comparisons"]


def test_another_model_or_seed_draws_only_its_own(
    alignkit: Command, run: Path, tmp_path: Path, draws: list[list[tuple[str, int]]]
) -> None:
    evaluate(alignkit)
    draws.clear()
    other = "other={class_path: alignkit.testing.ToyBackbone, init_args: {seed: 5}}"
    assert "12 of 36 pictures to draw" in evaluate(alignkit, "--model", other)
    assert sum(map(len, draws)) == 12
    assert [model.name for model in read(tmp_path / "out").models] == ["base", "aligned", "other"]
    draws.clear()
    assert "12 of 36 pictures to draw" in evaluate(alignkit, "--seeds", "3")
    assert {seed for call in draws for _, seed in call} == {picture_seed(prompt, 72) for prompt in PROMPTS}


def test_other_weights_under_the_same_name_are_noticed(
    alignkit: Command, run: Path, tmp_path: Path, draws: list[list[tuple[str, int]]]
) -> None:
    evaluate(alignkit)
    before = read(tmp_path / "out")
    ToyBackbone().save(ToyNetwork(2), run)
    draws.clear()
    said = evaluate(alignkit)
    assert "aligned: has other weights than before under this name; drawn anew" in said
    assert sum(map(len, draws)) == 12
    after = read(tmp_path / "out")
    assert after.pictures["base"] == before.pictures["base"]
    assert (tmp_path / "out" / before.pictures["aligned"][0][0]).is_file()
    assert after.pictures["aligned"] != before.pictures["aligned"]
    assert "other weights" not in evaluate(alignkit)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--num-steps", "2"), "--out out: is of another num_steps: 3, not 2"),
        (("--guidance", "1"), "--out out: is of another guidance: 2.0, not 1.0"),
        (("--max-prompts", "3"), "--out out: is of other prompts"),
        (("--suite", "emoji"), "--out out: is of another suite: 'held-out prompts of demo', not 'Emoji'"),
    ],
)
def test_a_folder_of_another_evaluation_is_refused(
    alignkit: Command, run: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    evaluate(alignkit, "--max-prompts", "2")
    before = (tmp_path / "out" / "report.json").read_bytes()
    limit = () if "--max-prompts" in more else ("--max-prompts", "2")
    code, _, err = alignkit("evaluate", "--run", "runs/demo", "--out", "out", *limit, *more)
    assert code == 2
    assert message in err
    assert (tmp_path / "out" / "report.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which models? Give --run RUN, or --model for each"),
        (("--run", "runs/none"), "--run runs/none: no config.yaml there"),
        (("--run", "runs/demo", "--model", "runs/typo"), "--model runs/typo: no run (it has no config.yaml)"),
        (("--model", "runs/demo"), "--model: there is only 'demo'; give another one to compare with"),
        (
            ("--model", "base", "--model", "b=base", *EMOJI),
            "--model base: whose? Give a run as well, or --config FILE",
        ),
        (("--run", "runs/demo", "--model", "base"), "--model: 'base' names two models"),
        (
            ("--run", "runs/demo", "--suite", "emojy"),
            "no suite and no file has that name; did you mean Emoji?",
        ),
        (("--run", "runs/demo", "--seeds", "0"), "--seeds must be at least 1, got 0"),
        (("--run", "runs/demo", "--reward", "None"), "unknown reward 'None'"),
        (("--run", "runs/demo", "--checkpoints"), "--checkpoints: runs/demo has none; leave the option out"),
        (
            ("--run", "runs/demo", "--model", "runs/demo@last"),
            "there is no 'runs/demo/checkpoints/last.ckpt'; a run's own stand in RUN/",
        ),
        (
            ("--run", "runs/demo", "--trained-on", "x=Redness"),
            "no model is named 'x'; there are base, aligned",
        ),
        (("--run", "runs/demo", "--out", "runs"), "--out runs: holds other things than an evaluation"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(
    alignkit: Command,
    run: Path,
    tmp_path: Path,
    draws: list[list[tuple[str, int]]],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    code, _, err = alignkit("evaluate", *arguments)
    assert code == 2
    assert message in err
    assert draws == []
    assert not (tmp_path / "evaluations").exists()


def test_a_run_without_judges_held_out_prompts_or_weights_says_so(
    alignkit: Command, run: Path, tmp_path: Path
) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.partition("data:")[0])
    assert "--suite: what is to be drawn?" in alignkit("evaluate", "--run", "runs/demo")[2]
    assert "--reward: name who judges" in alignkit("evaluate", "--run", "runs/demo", "--suite", "emoji")[2]
    (run / "config.yaml").write_text(config)
    (run / "toy.safetensors").unlink()
    code, _, err = alignkit("evaluate", "--run", "runs/demo")
    assert (code, (tmp_path / "evaluations").exists()) == (2, False), err
    assert "did its training come to its end?" in err


def test_a_judge_that_gives_no_number_is_refused_and_nothing_is_lost(
    alignkit: Command, run: Path, tmp_path: Path
) -> None:
    undecided = ("--reward", "tests.integration.test_evaluate.Undecided")
    evaluate(alignkit)
    code, _, err = alignkit("evaluate", "--run", "runs/demo", "--out", "out", *undecided)
    assert code == 2
    assert "Undecided: must give a finite number for every image" in err
    assert "0 of 24 pictures to draw" in evaluate(alignkit)


def test_a_full_disk_is_told_and_what_was_done_is_kept(
    alignkit: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Image.Image.save
    written: list[Any] = []

    def full(self: Image.Image, *arguments: Any, **options: Any) -> None:
        if len(written) == 14:
            raise OSError(28, "No space left on device")
        written.append(arguments)
        save(self, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    code, _, err = alignkit("evaluate", "--run", "runs/demo", "--out", "out", "--batch-size", "6")
    assert code == 2
    assert "no space left" in err
    assert "What was drawn and judged is kept" in err
    monkeypatch.setattr(Image.Image, "save", save)
    assert "12 of 24 pictures to draw" in evaluate(alignkit, "--batch-size", "6")


def test_who_was_trained_on_what_is_kept(alignkit: Command, run: Path, tmp_path: Path) -> None:
    evaluate(alignkit, "--trained-on", "Redness")
    assert [model.trained_on for model in read(tmp_path / "out").models] == [(), ("Redness",)]


def command(folder: Path, *arguments: str) -> tuple[list[str], dict[str, Any]]:
    """A command line of a process of its own, and how it is started."""
    line = [
        sys.executable,
        "-m",
        "alignkit.cli",
        "--trust",
        "tests",
        "evaluate",
        "--run",
        "runs/demo",
        *arguments,
    ]
    options = {"cwd": folder, "env": environment(), "stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
    return line, {**options, "text": True}


@pytest.mark.slow
def test_two_processes_give_the_same_pictures_and_report_as_one(
    alignkit: Command, run: Path, tmp_path: Path
) -> None:
    evaluate(alignkit, "--batch-size", "5", out="one")
    line, options = command(
        tmp_path, "--batch-size", "5", "--device", "cpu", "--devices", "2", "--out", "two"
    )
    done = subprocess.run(line, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("24 of 24 pictures to draw") == 1
    assert report(tmp_path / "one") == report(tmp_path / "two")
    paths = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.png"))
    assert len(paths) == 24
    for path in paths:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


@pytest.mark.slow
def test_sigkill_loses_a_batch_at_most(
    alignkit: Command, run: Path, tmp_path: Path, draws: list[list[tuple[str, int]]]
) -> None:
    """Killed when a third of the batches are kept, with no chance to say goodbye."""
    # so many steps that a batch takes a while
    given = ("--batch-size", "1", "--num-steps", "50", "--device", "cpu")
    line, options = command(tmp_path, *given, "--out", "out")
    process = subprocess.Popen(line, **options)
    scores = tmp_path / "out" / "scores"
    deadline = time.monotonic() + 120
    while len(list(scores.glob("*.parquet"))) < 8:
        assert process.poll() is None, "it came to its end before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    kept = len(list(scores.glob("*.parquet")))
    assert 8 <= kept < 24
    assert not (tmp_path / "out" / "report.json").exists()
    evaluate(alignkit, *given)
    assert len(draws) == 24 - kept
    evaluate(alignkit, *given, out="whole")
    assert report(tmp_path / "out") == report(tmp_path / "whole")


def test_a_terminal_without_its_letters_ends_no_evaluation(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, encoding="ascii"))
    given = ("--model", "base", "--model", "grün=runs/demo", "--device", "cpu", "--out", "out")
    assert main(["evaluate", *given]) == 0
    sys.stdout.flush()
    assert b"gr\\xfcn" in terminal.getvalue()


def test_the_summary_shows_differences_however_small(alignkit: Command, run: Path, tmp_path: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("factor: 3.0", "factor: 0.00001"))
    said = evaluate(alignkit)
    (found,) = [one for one in read(tmp_path / "out").comparisons if one.measure == "Redness"]
    assert found.difference is not None
    assert 0 < abs(found.difference.mean) < 1e-4
    assert f"{abs(found.difference.mean):.2e}".replace("-", "\N{MINUS SIGN}") in said


def test_pictures_of_two_environments_are_told_apart(
    alignkit: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn later is drawn with what is there by then; the report lists all that drew."""
    evaluate(alignkit, "--seeds", "1")
    evaluate(alignkit, "--seeds", "1", "--batch-size", "3")  # nothing to draw
    (first,) = report(tmp_path / "out")["manifest"]["drawn_with"]
    assert (first["device"], first["batch_size"]) == ("cpu", "32")
    found = manifest.version
    monkeypatch.setattr(manifest, "version", lambda name: "9.9" if name == "torch" else found(name))
    said = evaluate(alignkit, "--seeds", "2", "--batch-size", "3")
    assert "earlier pictures were drawn with another batch_size, torch; they are kept" in said
    assert report(tmp_path / "out")["manifest"]["drawn_with"] == [
        first,
        {**first, "batch_size": "3", "torch": "9.9"},
    ]


def test_a_model_leaves_the_device_before_the_next_one_comes(
    alignkit: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened, generate = [], ToyBackbone.generate

    def drawn(self: ToyBackbone, *given: Any, **named: Any) -> Tensor:
        happened.append("drawn")
        return generate(self, *given, **named)

    monkeypatch.setattr(ToyBackbone, "release", lambda self: happened.append("released"))
    monkeypatch.setattr(ToyBackbone, "generate", drawn)
    evaluate(alignkit, "--model", "base2=base")
    assert happened == ["drawn", "released", "drawn", "released", "drawn"]
