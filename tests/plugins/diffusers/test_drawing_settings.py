"""Whatever changes pictures changes the key that they are kept under; what does not, does not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel

from alignkit.evaluation.contents import Evaluated
from alignkit.evaluation.drawing import drawn
from alignkit.evaluation.identity import identified, key_of
from alignkit.evaluation.models import Model, plain
from alignkit.policy import LoRA, Outside
from alignkit.testing.pipelines import tiny_flux, tiny_stable_diffusion
from alignkit_diffusers.flux import Flux
from alignkit_diffusers.pipeline import PipelineBackbone
from alignkit_diffusers.stable_diffusion import StableDiffusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stable_diffusion(tmp_path_factory.mktemp("pipeline"))


def key(backbone: PipelineBackbone) -> str:
    return key_of(identified(plain("one", "", backbone)))


def picture(backbone: PipelineBackbone) -> torch.Tensor:
    network = backbone.build_policy()
    return drawn(backbone, network, ["a cat"], seeds=[1], num_steps=3, guidance=3.0)


def changed(folder: Path, copy: Path, file: str, **values: object) -> StableDiffusion:
    shutil.copytree(folder, copy)
    settings = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps({**settings, **values}))
    return StableDiffusion(str(copy))


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("scheduler/scheduler_config.json", {"timestep_spacing": "trailing"}),
        ("scheduler/scheduler_config.json", {"set_alpha_to_one": True}),
        ("unet/config.json", {"sample_size": 4}),
        ("unet/config.json", {"flip_sin_to_cos": False}),
    ],
)
def test_settings_that_change_pictures_change_the_key(
    folder: Path, tmp_path: Path, file: str, values: dict[str, object]
) -> None:
    """Weights and noise schedule are the same."""
    base, other = StableDiffusion(str(folder)), changed(folder, tmp_path / "copy", file, **values)
    ours, theirs = picture(base), picture(other)
    assert ours.shape != theirs.shape or (ours != theirs).any()
    assert key(base) != key(other)


def test_the_type_that_a_network_runs_in_changes_the_key(folder: Path) -> None:
    base, half = StableDiffusion(str(folder)), StableDiffusion(str(folder), frozen_dtype="bfloat16")
    assert (picture(base) != picture(half)).any()
    assert key(base) != key(half)


def test_what_changes_no_picture_keeps_the_key(folder: Path, tmp_path: Path) -> None:
    """Another place, another version of diffusers' own notes, and what only training looks at."""
    copy = changed(folder, tmp_path / "copy", "unet/config.json", _diffusers_version="0.1.0")
    shuffled = StableDiffusion(str(copy.path), caption_dropout=0.5, gradient_checkpointing=True)
    base = StableDiffusion(str(folder))
    network = base.build_policy()
    base.save(network, tmp_path / "run")
    saved = Model(Evaluated("run", ""), base, lambda: base.load(tmp_path / "run"))
    assert key(base) == key(copy) == key(shuffled) == key_of(identified(saved))


def test_the_strength_of_adapters_changes_the_key(folder: Path) -> None:
    """The weights that are added are the same."""
    keys = set()
    for alpha in (2, 4):
        backbone = StableDiffusion(str(folder), lora=LoRA(rank=2, alpha=alpha))
        network = backbone.build_policy()
        with torch.no_grad():
            for weight in network.parameters():
                if weight.requires_grad:
                    weight.fill_(0.1)
        keys.add(key_of(identified(Model(Evaluated("a", ""), backbone, lambda network=network: network))))
    assert len(keys) == 2


def test_fluxs_own_settings_change_the_key(tmp_path: Path) -> None:
    path = str(tiny_flux(tmp_path / "flux"))
    keys = {
        key(Flux(path, guidance_embedding=guidance, resolution=side))
        for guidance, side in ((3.5, 32), (1.0, 32), (3.5, 64))
    }
    assert len(keys) == 3


def test_a_released_backbone_draws_as_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts go to the CPU, all that were used, and come back."""
    backbone = StableDiffusion(str(folder))
    before, moved = picture(backbone), []
    on = Outside.on
    monkeypatch.setattr(
        Outside, "on", lambda self, device: moved.append((type(self.module), device)) or on(self, device)
    )
    backbone.release()
    assert moved == [(AutoencoderKL, torch.device("cpu")), (CLIPTextModel, torch.device("cpu"))]
    assert torch.equal(picture(backbone), before)
