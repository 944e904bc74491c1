"""A whole run on a tiny pipeline of two text encoders."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

Run = Callable[..., tuple[int, str, str]]

CONFIG = """
seed_everything: 3
objective: {{name: DiffusionDPO, beta: 200.0}}
sampler: SharedNoise
backbone: {{name: StableDiffusionXL, path: {pipeline}}}
optimizer: {{name: AdamW, lr: 1.0e-4}}
data:
  train: {{class_path: tests.integration.conftest.NoisyPairs}}
  validation: {{class_path: tests.integration.conftest.NoisyPairs, init_args: {{count: 10}}}}
  batch_size: 4
  resolution: 16
evaluation: {{max_prompts: 1, images_per_prompt: 2, num_steps: 2, guidance: 2.0}}
samples: {{num_prompts: 0}}
trainer: {{accelerator: cpu, devices: 1, max_steps: 2, log_every_n_steps: 1, enable_progress_bar: false}}
"""


@pytest.mark.parametrize("options", [(), ("--backbone.lora.rank", "2", "--trainer.precision", "bf16-mixed")])
def test_fit_leaves_a_network_that_diffusers_loads(
    alignkit: Run, xl_pipeline: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "xl.yaml").write_text(CONFIG.format(pipeline=xl_pipeline))
    code, _, err = alignkit("fit", "--config", "xl.yaml", "--run", "run", *options)
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2
    with Image.open(tmp_path / "run" / "before_after.png") as sheet:
        assert sheet.width > 100
    trained = UNet2DConditionModel.from_pretrained(tmp_path / "run", subfolder="unet")
    pipeline = StableDiffusionXLPipeline.from_pretrained(xl_pipeline, unet=trained, add_watermarker=False)
    base = UNet2DConditionModel.from_pretrained(xl_pipeline, subfolder="unet")
    weights = {name: weight for name, weight in base.named_parameters() if "attn2.to_q" in name}
    assert weights
    for name, weight in weights.items():
        assert not torch.equal(pipeline.unet.get_parameter(name), weight), name
    adapters = tmp_path / "run" / "pytorch_lora_weights.safetensors"
    assert adapters.exists() == bool(options)
    if options:
        assert all(name.startswith("unet.") for name in load_file(adapters))
    code, _, err = alignkit("generate", "--run", "run", "--prompt", "a plum", "--num", "1")
    assert code == 0, err
