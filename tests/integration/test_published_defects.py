"""Defects of published alignment code, each of which would have been found by one of these.

Losses that were wrong are in tests/plugins/classics.
"""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from alignkit import Key, PairRecord
from alignkit.checkpoints import read
from alignkit.data.dataset import PairDataset, collate
from alignkit.data.pictures import decode
from alignkit.module import AlignModule
from alignkit.policy import FrozenCopy, LoRA
from alignkit.testing import ToyBackbone, ToyNetwork, ToyPairs, toy_batch
from alignkit_diffusers.stable_diffusion import StableDiffusion
from alignkit_diffusion_dpo.objective import DiffusionDPO
from alignkit_sources.pickapic import PickAPic
from alignkit_standard.sampler import SharedNoise
from tests.runs import TOY

Run = Callable[..., tuple[int, str, str]]

TRAINER = """
trainer: {accelerator: cpu, devices: 1, max_steps: 4, log_every_n_steps: 1, enable_progress_bar: false}
"""
CONFIG = TOY + TRAINER


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG)
    return str(path)


def fitted(alignkit: Run, *arguments: str) -> None:
    code, _, err = alignkit("fit", *arguments)
    assert code == 0, err


def policy_in(run: Path) -> dict[str, Tensor]:
    """What a run's checkpoint holds of the trained weights."""
    checkpoint = read(run / "checkpoints" / "last.ckpt")
    return {name.removeprefix("policy."): weight for name, weight in checkpoint["state_dict"].items()}


@pytest.mark.parametrize(("ties", "pairs"), [(None, 48), ("drop", 48), ("coin", 60), ("soft", 60)])
def test_a_tie_is_not_silently_a_win(
    alignkit: Run, config: str, tmp_path: Path, ties: str | None, pairs: int
) -> None:
    """Pick-a-Pic's 0.5 was "image 0 wins" in several scripts; and nobody could see how many were dropped."""
    fitted(alignkit, "--config", config, "--run", "run", *(() if ties is None else ("--data.ties", ties)))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["data"] == {"pairs": pairs, "ties": 12, "ties_policy": ties or "drop"}


def test_ties_of_pick_a_pic_are_dropped(tmp_path: Path) -> None:
    source = ToyPairs(10)
    records = [source[index] for index in range(10)]
    columns = {
        "caption": [record.prompt for record in records],
        "jpg_0": [record.image_0 for record in records],
        "jpg_1": [record.image_1 for record in records],
        "label_0": [record.label_0 for record in records],
    }
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    pairs = PairDataset(PickAPic(str(tmp_path / "pairs.parquet")), resolution=16)
    assert (len(pairs), pairs.num_ties) == (8, 2)
    for index in range(8):
        winner_CHW, loser_CHW = pairs[index, 0].image_KCHW
        assert winner_CHW.mean() > 0 > loser_CHW.mean()


class OneNetwork(ToyBackbone):
    """Gives the policy out as its reference."""

    def build_reference(self, policy: torch.nn.Module) -> ToyNetwork:
        assert isinstance(policy, ToyNetwork)
        return policy


def test_policy_and_reference_are_not_one_object() -> None:
    """So they were in a trainer until it was noticed: every margin is 0, and nothing is learned."""
    module = AlignModule(DiffusionDPO(), SharedNoise(), OneNetwork(), torch.optim.AdamW)
    with pytest.raises(ValueError, match="build_reference returned the policy itself"):
        module.configure_model()


def test_what_is_saved_is_what_was_trained(alignkit: Run, config: str, tmp_path: Path) -> None:
    """A release saved the wrong object, with the wrong adapter active."""
    fitted(alignkit, "--config", config, "--run", "run")
    saved, trained = load_file(tmp_path / "run" / "toy.safetensors"), policy_in(tmp_path / "run")
    assert saved.keys() == trained.keys()
    for name, base in ToyBackbone().build_policy().state_dict().items():
        assert torch.equal(saved[name], trained[name])
        assert not torch.equal(saved[name], base)


class Twins(ToyPairs):
    """Pairs of twice the same picture."""

    def __getitem__(self, index: int) -> PairRecord:
        record = super().__getitem__(index)
        return record._replace(image_1=record.image_0)


@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
def test_both_sides_of_a_pair_see_the_same(pipeline: Path, dropout: float) -> None:
    """Crop, posterior noise, step, noise and caption: twins stay twins, and their margin is 0.

    Scripts cropped and flipped winner and loser independently, or dropped the caption of one of them.
    """
    pairs = PairDataset(Twins(), resolution=12)  # less than the pictures have: they are resized
    batch = collate([pairs[index, 3] for index in range(16)])
    assert torch.equal(batch.image_KBCHW[0], batch.image_KBCHW[1])
    backbone = StableDiffusion(str(pipeline), caption_dropout=dropout)
    module = AlignModule(DiffusionDPO(), SharedNoise(), backbone, torch.optim.AdamW)
    module.configure_model()
    key = Key(0, batch.id_B, batch.visit_B)
    encoded = backbone.encode(batch, key=key)
    assert torch.equal(encoded.latent_KBCHW[0], encoded.latent_KBCHW[1])
    dropped = sum(prompt == "" for prompt in encoded.prompts)
    assert {0.0: dropped == 0, 0.5: 0 < dropped < 16, 1.0: dropped == 16}[dropout]
    assert len(encoded.text_BLD) == 16  # one text for both candidates
    policy, reference = module._denoisers(encoded)
    sample = module.sampler(batch, encoded, policy, reference, key=key)
    assert torch.equal(sample.x_KBCHW[0], sample.x_KBCHW[1])
    assert torch.equal(sample.t_KB[0], sample.t_KB[1])
    logp_KB = sample.logp(policy(sample.x_KBCHW, sample.t_KB))
    assert_close(logp_KB[0], logp_KB[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(48, 16), (16, 48), (96, 32), (20, 16)])
def test_pictures_of_any_shape_are_cropped_alike(size: tuple[int, int]) -> None:
    """Shorter side resized, centre kept: a wide and a high picture lose their ends, not their middle."""
    picture = Image.new("RGB", size, "blue")
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    picture.paste("red", (left, top, left + side, top + side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    image_CHW = decode(buffer.getvalue(), (16, 16), "a picture").image_CHW
    assert image_CHW.shape == (3, 16, 16)
    red_CHW = torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 16, 16)
    inner = (slice(None), slice(2, 14), slice(2, 14))  # at the rim, resizing mixes
    assert_close(image_CHW[inner], red_CHW[inner], rtol=0, atol=0.05)


def test_the_reference_stays_where_it_was_when_a_run_is_resumed(
    alignkit: Run, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer silently moved it onto the half-trained weights, which makes the first margins 0 again."""
    modules: list[AlignModule] = []
    margins: list[float] = []
    configure, report = AlignModule.configure_model, AlignModule._report

    def noted_configure(self: AlignModule) -> None:
        configure(self)
        modules.append(self)

    def noted_report(self: AlignModule, scored: object, loss: object, *rest: object) -> None:
        if self.trainer.training:
            margins.append(float(loss.logs["rewards/margins"]))  # type: ignore[attr-defined]
        report(self, scored, loss, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(AlignModule, "configure_model", noted_configure)
    monkeypatch.setattr(AlignModule, "_report", noted_report)
    fitted(alignkit, "--config", config, "--run", "run")
    last = ("--ckpt_path", "run/checkpoints/last.ckpt", "--trainer.max_steps", "6")
    fitted(alignkit, "--config", config, "--run", "run", *last)
    base = ToyBackbone().build_policy()
    reference = modules[-1].reference
    assert isinstance(reference, FrozenCopy)
    with reference.network() as network:
        for name, weight in network.named_parameters():
            assert torch.equal(weight, base.get_parameter(name)), name
    assert not torch.equal(policy_in(tmp_path / "run")["out.weight"], base.out.weight)
    assert margins[0] == 0
    assert len(margins) == 6
    assert abs(margins[4]) > 0.1 * abs(margins[3]) > 0


@pytest.mark.parametrize("count", ["0", "-1"])
def test_gradients_accumulated_over_no_batch_are_refused(
    alignkit: Run, config: str, count: str, tmp_path: Path
) -> None:
    """``num_batches // 2`` of a single batch was 0 in a config."""
    code, _, err = alignkit("fit", "--config", config, "--trainer.accumulate_grad_batches", count)
    assert code == 2
    assert f"trainer.accumulate_grad_batches must be at least 1, got {count}" in err
    assert not (tmp_path / "runs").exists()


def test_saved_adapters_keep_an_alpha_that_is_not_the_rank(pipeline: Path, tmp_path: Path) -> None:
    """An exporter wrote the rank for alpha, whatever it was: those adapters have half their strength."""
    backbone = StableDiffusion(str(pipeline), lora=LoRA(rank=2, alpha=8.0))
    policy = backbone.build_policy()
    backbone.save(policy, tmp_path)
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (metadata["unet.r"], metadata["unet.lora_alpha"]) == (2, 8.0)
    loaded = StableDiffusionPipeline.from_pretrained(pipeline)
    loaded.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    layers = [layer for layer in loaded.unet.modules() if isinstance(layer, LoraLayer)]
    assert layers
    assert {scale for layer in layers for scale in layer.scaling.values()} == {8.0 / 2}


@pytest.mark.parametrize(
    ("written", "meant"), [("False", False), ("false", False), ("True", True), ("true", True)]
)
def test_false_on_the_command_line_is_false(
    alignkit: Run, config: str, pipeline: Path, written: str, meant: bool
) -> None:
    """With argparse's ``type=bool`` every word is true."""
    options = ("--backbone", "StableDiffusion", "--backbone.path", str(pipeline))
    options += ("--backbone.gradient_checkpointing", written)
    code, out, err = alignkit("fit", "--config", config, *options, "--print_config")
    assert code == 0, err
    assert yaml.safe_load(out)["backbone"]["init_args"]["gradient_checkpointing"] is meant


@pytest.mark.parametrize("adapters", [(), ("--backbone.lora.rank", "2")])
def test_a_small_step_changes_trainable_weights_in_mixed_precision(
    alignkit: Run, config: str, pipeline: Path, tmp_path: Path, adapters: tuple[str, ...]
) -> None:
    """They are float32: in bfloat16, 0.1 - 1e-4 is 0.1, and a run at the usual rates trains next to nothing.

    The first step of Adam moves every weight with a gradient by the learning rate.
    """
    rate = 1e-5
    in_half = torch.tensor(0.1, dtype=torch.bfloat16)
    assert in_half - rate == in_half
    options = ("--backbone", "StableDiffusion", "--backbone.path", str(pipeline), *adapters)
    options += ("--trainer.precision", "bf16-mixed", "--trainer.max_steps", "1")
    options += ("--optimizer", "Adam", "--optimizer.lr", str(rate), "--run", "run")
    fitted(alignkit, "--config", config, *options)
    trained = policy_in(tmp_path / "run")
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    base = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet").state_dict()
    if adapters:  # the second factor of an adapter starts at zero, and the first has no gradient yet
        base = {name: torch.zeros_like(weight) for name, weight in trained.items() if "lora_B" in name}
    for name, weight in base.items():
        moved = (trained[name] - weight).abs()
        assert moved.max() <= 1.1 * rate, name
        assert (moved > 0).float().mean() > 0.5, name


def test_first_margin_of_a_pair_is_exactly_zero() -> None:
    """The same numeric path for both networks; an own one for the reference makes margins out of rounding."""
    module = AlignModule(DiffusionDPO(beta=1e6), SharedNoise(), ToyBackbone(), torch.optim.AdamW)
    module.configure_model()
    module._report = Mock()  # type: ignore[method-assign] # there is no Trainer to log to
    with torch.autocast("cpu", torch.bfloat16):
        module.training_step(toy_batch(8), 0)
    _, loss, *_ = module._report.call_args.args
    assert loss.logs["rewards/margins"] == 0
    assert torch.equal(loss.loss_B, torch.full((8,), math.log(2)))
