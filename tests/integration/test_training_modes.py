"""Every training mode as a run: it begins at exactly ln 2, trains what it should, and resumes bit for bit."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alignkit.checkpoints import read

Run = Callable[..., tuple[int, str, str]]

CONFIG = """
seed_everything: 3
objective: {{name: DiffusionDPO, beta: 200.0}}
sampler: SharedNoise
backbone: {{name: StableDiffusion, path: {pipeline}}}
optimizer: {{name: AdamW, lr: 1.0e-3}}
data:
  train: {{class_path: tests.integration.conftest.NoisyPairs}}
  batch_size: 4
  resolution: 16
evaluation: {{max_prompts: 0}}
samples: {{num_prompts: 0}}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 5
  log_every_n_steps: 1
  enable_progress_bar: false
"""
UNET = "unet/diffusion_pytorch_model.safetensors"
LORA = ("--backbone.lora.rank", "2")
MIXED = ("--trainer.precision", "bf16-mixed")
EMA = "--trainer.callbacks=alignkit.callbacks.EMA"
MODES: dict[str, tuple[str, ...]] = {
    "full": (),
    "lora": LORA,
    "rslora": (*LORA, "--backbone.lora.rslora", "true"),
    "dora": (*LORA, "--backbone.lora.dora", "true"),
    "lora against a copy": (*LORA, "--reference", "alignkit.policy.FrozenCopy"),
    "lora with an average": (*LORA, EMA),
    "dora in mixed precision": (*LORA, "--backbone.lora.dora", "true", *MIXED),
    "mixed precision": MIXED,
    "half frozen weights": (*LORA, *MIXED, "--backbone.frozen_dtype", "bfloat16"),
    "a half copy": (*MIXED, "--backbone.frozen_dtype", "bfloat16"),
    "checkpointing": ("--backbone.gradient_checkpointing", "true"),
    "checkpointing and lora in mixed precision": (
        *LORA,
        *MIXED,
        "--backbone.gradient_checkpointing",
        "true",
    ),
    "adafactor": ("--optimizer", "Adafactor", "--optimizer.lr", "1.0e-3"),
}


@pytest.fixture
def config(pipeline: Path, tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.format(pipeline=pipeline))
    return str(path)


def fit(alignkit: Run, *options: str) -> str:
    code, out, err = alignkit("fit", *options)
    assert code == 0, err
    return out + err


def losses(run: Path) -> list[float]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return [event.value for event in events.Scalars("loss")]


def trained(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = read(run / "checkpoints/last.ckpt")
    return state


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_begins_at_ln_2_and_resumes_bit_for_bit(
    alignkit: Run, config: str, tmp_path: Path, pipeline: Path, mode: str
) -> None:
    options = ("--config", config, *MODES[mode])
    told = fit(alignkit, *options, "--run", "whole")
    assert "first batch: margin 0 (exactly 0), loss of DiffusionDPO 0.693147" in told
    found = losses(tmp_path / "whole")
    assert len(found) == 5
    assert found[0] == pytest.approx(math.log(2), abs=1e-7)
    assert all(math.isfinite(loss) and loss != found[0] for loss in found[1:])
    fit(alignkit, *options, "--run", "split", "--trainer.max_steps", "2")
    last = ("--ckpt_path", "split/checkpoints/last.ckpt")
    fit(alignkit, *options, "--run", "split", *last)
    first, second = trained(tmp_path / "whole"), trained(tmp_path / "split")
    weights = first["state_dict"]
    assert weights.keys() == second["state_dict"].keys()
    assert all(torch.equal(weight, second["state_dict"][name]) for name, weight in weights.items())
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(name.startswith("policy.") for name in weights)
    assert any("lora_" in name for name in weights) == ("--backbone.lora.rank" in MODES[mode])
    assert all("lora_" in name for name in weights) == ("--backbone.lora.rank" in MODES[mode])
    unets = [
        load_file(tmp_path / run / "unet/diffusion_pytorch_model.safetensors") for run in ("whole", "split")
    ]
    base = load_file(pipeline / "unet/diffusion_pytorch_model.safetensors")
    assert unets[0].keys() == unets[1].keys() == base.keys()
    assert all(torch.equal(weight, unets[1][name]) for name, weight in unets[0].items())
    assert any(not torch.equal(weight, base[name]) for name, weight in unets[0].items())


@pytest.mark.slow
def test_half_frozen_weights_train_to_the_same_weights(alignkit: Run, config: str, tmp_path: Path) -> None:
    """Bit for bit those of mixed precision alone, from the reference's copy and from a policy's base."""
    for number, options in enumerate(((), LORA)):
        for dtype in ("float32", "bfloat16"):
            half = ("--backbone.frozen_dtype", dtype)
            fit(alignkit, "--config", config, "--run", f"{dtype}{number}", *MIXED, *options, *half)
        one, other = (trained(tmp_path / f"{dtype}{number}") for dtype in ("float32", "bfloat16"))
        weights = one["state_dict"]
        assert weights
        assert all(torch.equal(weight, other["state_dict"][name]) for name, weight in weights.items())


@pytest.mark.slow
def test_an_average_of_adapters_is_what_a_run_leaves(alignkit: Run, config: str, tmp_path: Path) -> None:
    fit(alignkit, "--config", config, "--run", "run", *LORA, EMA)
    state = trained(tmp_path / "run")
    average = state["callbacks"]["EMA"]["average"]
    adapters = load_file(tmp_path / "run/pytorch_lora_weights.safetensors")
    assert len(average) == len(adapters) == len(state["state_dict"])
    # peft and diffusers name them differently; they are as many, and of the same values
    for weight in average.values():
        assert any(other.shape == weight.shape and torch.equal(other, weight) for other in adapters.values())
    raw = {name.removeprefix("policy."): weight for name, weight in state["state_dict"].items()}
    assert any(not torch.equal(weight, raw[name]) for name, weight in average.items())


@pytest.mark.slow
def test_a_compiled_run_leaves_what_an_uncompiled_one_does(
    alignkit: Run, config: str, tmp_path: Path
) -> None:
    for run, options in (("plain", ()), ("compiled", ("--model.compile.backend", "eager"))):
        fit(alignkit, "--config", config, "--run", run, *LORA, EMA, *options)
    assert losses(tmp_path / "plain") == losses(tmp_path / "compiled")
    one, other = (trained(tmp_path / run) for run in ("plain", "compiled"))
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(w, other["state_dict"][name]) for name, w in one["state_dict"].items())
    assert one["callbacks"]["EMA"]["average"].keys() == other["callbacks"]["EMA"]["average"].keys()
    # and each goes on from the other's checkpoint
    last = ("--ckpt_path", "compiled/checkpoints/last.ckpt", "--trainer.max_steps", "6")
    last += ("--allow-change", "model.compile")
    fit(alignkit, "--config", config, "--run", "compiled", *LORA, EMA, *last)


REFUSED = {
    ("--reference", "alignkit.policy.AdaptersOff"): "AdaptersOff: the policy has no adapters to switch off",
    ("--reference", "alignkit.policy.TokensOff"): "TokensOff: the policy is told nothing",
    ("--objective", "SFT", "--reference", "alignkit.policy.FrozenCopy"): "but SFT looks at no reference",
    ("--trainer.precision", "bf16-true"): "use bf16-mixed, which keeps float32 weights",
    ("--trainer.precision", "64-true"): "trainer.precision must be 32-true, bf16-mixed or 16-mixed",
    ("--backbone.frozen_dtype", "bfloat16"): "needs trainer.precision bf16-mixed, got 32-true",
    ("--backbone.frozen_dtype", "int8"): "backbone.frozen_dtype: must be float32, bfloat16 or float16",
    ("--model.compile", "{}"): "model.compile needs trainer.precision bf16-mixed or 16-mixed",
    ("--backbone.lora.targets", "[to_w]"): "lora.targets: 'to_w' names no layer of UNet2DConditionModel",
    (EMA, "--trainer.callbacks+=alignkit.callbacks.EMA"): "trainer.callbacks: one EMA at most, got 2",
    ("--optimizer", "bitsandbytes.optim.AdamW8bit", "--trust", "bitsandbytes"): "pip install bitsandbytes",
    ("--optimizer", "AdamW8bit"): "named by their path, such as bitsandbytes.optim.AdamW8bit",
}


@pytest.mark.parametrize("options", REFUSED, ids=" ".join)
def test_what_does_not_combine_is_refused_before_anything_is_loaded_or_written(
    alignkit: Run, config: str, tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    for kind in (UNet2DConditionModel, AutoencoderKL):
        monkeypatch.setattr(kind, "from_pretrained", None)
    code, _, err = alignkit("fit", "--config", config, *options)
    assert code == 2, err
    assert REFUSED[options] in err
    assert len(err.splitlines()) <= 5
    assert not (tmp_path / "runs").exists()


class AdamW8bit(torch.optim.AdamW):
    """Stands in for the optimizer of bitsandbytes: takes what it takes."""

    def __init__(
        self, params: Any, lr: float = 1e-3, weight_decay: float = 1e-2, min_8bit_size: int = 4096
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.min_8bit_size = min_8bit_size


def test_an_optimizer_of_another_package_is_named_by_its_path(
    alignkit: Run, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, module = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    module.AdamW8bit = AdamW8bit  # type: ignore[attr-defined]
    package.optim = module  # type: ignore[attr-defined]
    monkeypatch.setattr(AdamW8bit, "__module__", "bitsandbytes.optim")
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    eight_bit = "{class_path: bitsandbytes.optim.AdamW8bit, init_args: {lr: 1.0e-3, min_8bit_size: 64}}"
    text = Path(config).read_text().replace("{name: AdamW, lr: 1.0e-3}", eight_bit)
    Path(config).write_text(text)
    trust = ("--trust", "bitsandbytes")
    fit(alignkit, "--config", config, "--run", "run", "--trainer.max_steps", "1", *trust)
    saved = (tmp_path / "run/config.yaml").read_text()
    assert "class_path: bitsandbytes.optim.AdamW8bit" in saved
    assert "min_8bit_size: 64" in saved
    assert trained(tmp_path / "run")["optimizer_states"][0]["state"]
