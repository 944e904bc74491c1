"""What `alignkit evaluate` can compare: runs, checkpoints, audiences, pipelines of other families."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignkit import checkpoints
from alignkit.evaluation.report import read
from alignkit.policy import fingerprint
from alignkit_diffusers.stable_diffusion import StableDiffusion
from tests.integration.test_conditioner import CONFIG as PEOPLE
from tests.integration.test_runs import CONFIG

Run = Callable[..., tuple[int, str, str]]
KEPT = """
  callbacks:
  - {class_path: alignkit.callbacks.EMA, init_args: {decay: 0.9}}
  - class_path: lightning.pytorch.callbacks.ModelCheckpoint
    init_args: {filename: '{step}', every_n_train_steps: 2, save_top_k: -1}
"""
TASTE = ("--reward", "MajorityTaste", "--device", "cpu", "--num-steps", "2", "--out", "out")


def fitted(alignkit: Run, text: str, *more: str) -> None:
    Path("tiny.yaml").write_text(text)
    silent = ("--evaluation.max_prompts", "0", "--samples.num_prompts", "0")
    code, _, err = alignkit("fit", "--config", "tiny.yaml", "--run", "runs/demo", *silent, *more)
    assert code == 0, err
    config = Path("runs/demo/config.yaml")
    config.write_text(config.read_text().replace("max_prompts: 0", "max_prompts: 4"))


def evaluate(alignkit: Run, *given: str) -> str:
    code, said, err = alignkit("evaluate", *given, *TASTE)
    assert code == 0, err
    return said


def drawn_by(out: Path, model: str) -> np.ndarray:
    paths = [path for row in read(out).pictures[model] for path in row]
    return np.stack([np.asarray(Image.open(out / path)) for path in paths])


def test_checkpoints_are_a_series_with_steps_and_the_average_of_each(
    alignkit: Run, pipeline: Path, tmp_path: Path
) -> None:
    fitted(alignkit, CONFIG.format(pipeline=pipeline).rstrip() + KEPT, "--trainer.max_steps", "4")
    evaluate(alignkit, "--run", "runs/demo", "--checkpoints", "--model", "end=runs/demo@last")
    found = read(tmp_path / "out")
    series = [model for model in found.models if model.series]
    assert {model.series for model in series} == {"aligned"}
    assert [model.step for model in series if "step=" in model.name] == sorted(m.step or 0 for m in series)
    assert {model.step for model in series} >= {2, 4}
    for model in series:
        state = checkpoints.read(Path(model.source))
        (average,) = (part["average"] for part in state["callbacks"].values() if "average" in part)
        network = StableDiffusion(str(pipeline)).build_policy()
        network.load_state_dict(average)
        told = found.manifest["models"][model.name]["weights"]
        assert told == fingerprint(dict(network.named_parameters()))
    # the run left the average that its last checkpoint holds; without it, a checkpoint says how far it came
    last = next(model.name for model in found.models if model.name.startswith("end"))
    evaluate(alignkit, "--run", "runs/demo", "--model", "end=runs/demo@last")
    np.testing.assert_array_equal(
        drawn_by(tmp_path / "out", "aligned"), drawn_by(tmp_path / "out", last), strict=True
    )
    Path("runs/demo/unet").rename("gone")
    code, _, err = alignkit("evaluate", "--run", "runs/demo", *TASTE)
    assert code == 2
    assert "did its training come to its end?" in err
    assert "--model runs/demo@last evaluates how far it came" in err


def test_adapters_draw_as_the_network_that_they_were_merged_into(
    alignkit: Run, pipeline: Path, tmp_path: Path
) -> None:
    """What a LoRA run left, and its last checkpoint, whose adapters stand beside the weights."""
    lora = ("--backbone.lora", "{rank: 2}", "--trainer.max_steps", "2", "--optimizer.lr", "0.01")
    fitted(alignkit, CONFIG.format(pipeline=pipeline), *lora)
    evaluate(alignkit, "--run", "runs/demo", "--model", "end=runs/demo@last")
    merged, beside = (drawn_by(tmp_path / "out", name) for name in ("aligned", "end"))
    assert np.abs(merged.astype(int) - beside).max() <= 1
    assert (merged != drawn_by(tmp_path / "out", "base")).any()


def test_audiences_of_a_conditioner_are_models_of_their_own(
    alignkit: Run, pipeline: Path, tmp_path: Path
) -> None:
    fitted(alignkit, PEOPLE.format(pipeline=pipeline), "--trainer.max_steps", "3")
    evaluate(alignkit, "--run", "runs/demo")
    found = read(tmp_path / "out")
    assert [model.name for model in found.models] == ["base", "aligned for bright", "aligned for dark"]
    bright, dark = (found.manifest["models"][f"aligned for {name}"] for name in ("bright", "dark"))
    assert bright["weights"] == dark["weights"]
    assert bright["audience"] != dark["audience"]
    assert (drawn_by(tmp_path / "out", "aligned for bright") != drawn_by(tmp_path / "out", "base")).any()


def test_pipelines_of_other_families_draw_with_their_own_backbones(
    alignkit: Run, pipeline: Path, v_pipeline: Path, xl_pipeline: Path, tmp_path: Path
) -> None:
    models = [f"{name}={path}" for name, path in (("one", pipeline), ("v", v_pipeline), ("xl", xl_pipeline))]
    (tmp_path / "prompts.txt").write_text("a cat\na dog that barks at everybody\n")
    given = [part for model in models for part in ("--model", model)]
    said = evaluate(alignkit, *given, "--suite", "prompts.txt", "--seeds", "2")
    for kind in ("StableDiffusion", "StableDiffusionXL"):
        assert f"prompts: 1 prompts are longer than the 16 tokens that {kind} reads" in said
    told = json.loads((tmp_path / "out" / "report.json").read_text())["manifest"]["models"]
    assert {name: told[name]["backbone"] for name in told} == {
        "one": "StableDiffusion",
        "v": "StableDiffusion",
        "xl": "StableDiffusionXL",
    }
    assert told["v"]["prediction_type"] == "v_prediction"
    assert read(tmp_path / "out").results.scores["xl"].reward_PS["MajorityTaste"].shape == (2, 2)


@pytest.mark.slow
def test_the_emoji_base_against_other_weights_of_it(alignkit: Run, tmp_path: Path) -> None:
    """The shipped base, prompts, rewards and features, in few steps."""
    config = "dmpo.yaml"
    fit = ("--trainer.max_steps", "1", "--evaluation.max_prompts", "0", "--samples.num_prompts", "0")
    code, _, err = alignkit(
        "fit", "--config", config, "--run", "runs/demo", *fit, "--trainer.limit_val_batches=1"
    )
    assert code == 0, err
    given = (
        "--run",
        "runs/demo",
        "--suite",
        "emoji",
        "--max-prompts",
        "3",
        "--num-steps",
        "2",
        "--seeds",
        "2",
    )
    code, said, err = alignkit("evaluate", *given, "--device", "cpu")
    assert code == 0, err
    found = read(tmp_path / "evaluations" / "demo-Emoji")
    assert {prompt.category for prompt in found.results.prompts} <= {"Animals & Nature", "Food & Drink"}
    assert {"MajorityTaste", "EmojiFidelity"} <= set(found.results.scores["base"].reward_PS)
    assert found.verdicts
    assert found.verdicts[0] in said


def test_figures_are_those_that_the_run_itself_reported(
    alignkit: Run, pipeline: Path, tmp_path: Path
) -> None:
    """The same prompts, noise, steps and judges: one way to evaluate."""
    Path("tiny.yaml").write_text(
        CONFIG.format(pipeline=pipeline).replace("guidance: 2.0}", "guidance: 2.0, rewards: [MajorityTaste]}")
    )
    code, _, err = alignkit("fit", "--config", "tiny.yaml", "--run", "runs/demo", "--trainer.max_steps=2")
    assert code == 0, err
    code, _, err = alignkit("evaluate", "--run", "runs/demo", "--out", "out", "--device", "cpu")
    assert code == 0, err
    reported = json.loads(Path("runs/demo/summary.json").read_text())
    found = read(tmp_path / "out")
    assert [prompt.text for prompt in found.results.prompts] == reported["prompts"]
    for name in ("base", "aligned"):
        mean = found.results.scores[name].reward_PS["MajorityTaste"].mean()
        assert mean == pytest.approx(reported["scores"]["MajorityTaste"][name]["mean"], abs=1e-6)
