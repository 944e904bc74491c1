"""`alignkit plan`: its figures against those of real steps, and of published architectures."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml

from alignkit.components import Backbone
from alignkit.data import AlignData
from alignkit.module import AlignModule
from alignkit.planning.memory import Memory, Step, memory
from alignkit.policy import LoRA
from alignkit.testing import ToyPairs
from alignkit.training import quiet_libraries
from alignkit_diffusers.stable_diffusion import StableDiffusion
from alignkit_diffusers.stable_diffusion_xl import StableDiffusionXL
from alignkit_diffusion_dpo.objective import DiffusionDPO
from alignkit_standard.sampler import SharedNoise
from tests.published import stable_diffusion_3, stable_diffusion_15, stable_diffusion_xl

Run = Callable[..., tuple[int, str, str]]

BATCH, RESOLUTION = 8, 16


def optimizer(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=1e-4)


def module_of(backbone: Backbone) -> AlignModule:
    return AlignModule(DiffusionDPO(), SharedNoise(), backbone, optimizer)


def estimated(backbone: Backbone, precision: str, accumulated: int = 1) -> Memory:
    step = Step(RESOLUTION, BATCH, 2, 2, precision, accumulated, 1.0)
    return memory(module_of(backbone), None, optimizer, step)


def measured_peak(backbone: Backbone, precision: str, folder: Path, accumulated: int = 1) -> int:
    """Most bytes that torch's allocator had given out at once while the Trainer ran three steps.

    By the profiler's record of every allocation and release, which knows nothing of tensors or autograd.
    """
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=3,
        accumulate_grad_batches=accumulated,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    module, data = module_of(backbone), AlignData(ToyPairs(), batch_size=BATCH, resolution=RESOLUTION)
    quiet_libraries()
    gc.collect()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        trainer.fit(module, data)
    events = profiler.profiler.kineto_results.events()
    live = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        live += size
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("lora", [None, LoRA()], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["sd", "xl"])
def test_memory_is_that_of_a_real_step(
    family: str, lora: LoRA | None, checkpointing: bool, pipeline: Path, xl_pipeline: Path, tmp_path: Path
) -> None:
    """To 5 %; the promise is 15 %."""

    def backbone() -> Backbone:
        options: dict[str, Any] = {"lora": lora, "gradient_checkpointing": checkpointing}
        if family == "sd":
            return StableDiffusion(str(pipeline), **options)
        return StableDiffusionXL(str(xl_pipeline), **options)

    peak = measured_peak(backbone(), "32-true", tmp_path)
    assert estimated(backbone(), "32-true").peak == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_memory_of_mixed_precision_is_that_of_a_real_step(
    accumulated: int, xl_pipeline: Path, tmp_path: Path
) -> None:
    """To 10 %: Lightning and autocast keep a little that is not counted."""
    peak = measured_peak(StableDiffusionXL(str(xl_pipeline)), "bf16-mixed", tmp_path, accumulated)
    found = estimated(StableDiffusionXL(str(xl_pipeline)), "bf16-mixed", accumulated)
    assert found.peak == pytest.approx(peak, rel=0.10)


def test_a_bank_takes_the_place_of_the_reference(pipeline: Path) -> None:
    """Its weights are not there, nor what it computes."""
    plain = Step(RESOLUTION, BATCH, 2, 2, "32-true", 1, 1.0)
    with_reference, banked = (
        memory(module_of(StableDiffusion(str(pipeline))), None, optimizer, step)
        for step in (plain, plain._replace(banked=True))
    )
    weights = with_reference.parts.pop("weights of reference")
    assert weights > 0
    assert banked.parts == with_reference.parts
    assert with_reference.peak - banked.peak >= weights


def test_parts_are_counted_by_hand(pipeline: Path) -> None:
    """Four bytes a weight; AdamW keeps two numbers of each, and a step count for each tensor."""
    policy = StableDiffusion(str(pipeline)).build_policy()
    count = sum(weight.numel() for weight in policy.parameters())
    found = estimated(StableDiffusion(str(pipeline)), "32-true")
    assert found.networks["policy"] == (count, count)
    assert found.networks["reference"] == (count, 0)
    assert found.parts["weights of policy"] == found.parts["weights of reference"] == 4 * count
    assert found.parts["gradients"] == 4 * count
    assert found.parts["optimizer states"] == 4 * (2 * count + len(list(policy.parameters())))
    assert found.shapes == {"latent": (4, 8, 8), "text": (16, 16)}
    assert found.peak == max(found.phases.values())


def test_adapters_are_trained_alone_and_need_no_second_network(xl_pipeline: Path) -> None:
    lora = LoRA(rank=2)
    policy = StableDiffusionXL(str(xl_pipeline), lora=lora).build_policy()
    trained = sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)
    found = estimated(StableDiffusionXL(str(xl_pipeline), lora=lora), "32-true")
    assert found.networks["policy"].trained == trained
    assert "reference" not in found.networks
    assert found.parts["gradients"] == 4 * trained


def test_an_optimizer_that_asks_for_values_has_its_states_counted(pipeline: Path) -> None:
    """Adafactor keeps a row and a column of a matrix: far less than the 8 bytes a weight of Adam."""

    def adafactor(weights: Any) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(weights)

    step = Step(RESOLUTION, BATCH, 2, 2, "32-true", 1, 1.0)
    found = memory(module_of(StableDiffusion(str(pipeline))), None, adafactor, step)
    assert 0 < found.parts["optimizer states"] < found.parts["gradients"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "write", "parameters"),
    [
        # https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5, unet: 860 M in
        # https://arxiv.org/abs/2112.10752
        ("sd15", stable_diffusion_15, {"policy": 859_520_964, "text_encoder": 123_060_480}),
        # 2.6 B in table 1 of https://arxiv.org/abs/2307.01952, whose text encoders have 817 M
        (
            "sdxl",
            stable_diffusion_xl,
            {"policy": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
        ),
        # 2 B in https://huggingface.co/stabilityai/stable-diffusion-3-medium
        ("sd3", stable_diffusion_3, {"policy": 2_028_328_000, "text_encoder_2": 694_659_840}),
    ],
)
def test_published_architectures_are_planned_from_their_configs(
    config: str, write: Callable[[Path], Path], parameters: dict[str, int], alignkit: Run, tmp_path: Path
) -> None:
    folder = write(tmp_path / config)
    code, out, err = alignkit(
        "plan",
        "--config",
        f"diffusion_dpo/{config}_pickapic.yaml",
        "--backbone.path",
        str(folder),
        "--pairs",
        "851293",
        "--json",
    )
    assert code == 0, err
    found = json.loads(out)
    assert {name: found["networks"][name]["total"] for name in parameters} == parameters
    autoencoder = 83_819_683 if config == "sd3" else 83_653_863  # of 16 channels, and of 4
    assert found["networks"]["vae"]["total"] == autoencoder
    parts = found["memory"]["parts"]
    assert parts["gradients"] == 4 * parameters["policy"]
    # SD3 has a table of positions besides, 192 x 192 of 1536 numbers, which is not trained
    table = 192 * 192 * 1536 if config == "sd3" else 0
    assert parts["weights of policy"] == 4 * (parameters["policy"] + table)
    assert found["run"]["effective_batch"] == 2048
    # 851,293 pairs x 2 pictures x mean and logvar x 2 bytes of each number
    latent = {"sd15": 4 * 64 * 64, "sdxl": 4 * 128 * 128, "sd3": 16 * 128 * 128}[config]
    assert found["disk"]["latents"] == 851_293 * 2 * 2 * latent * 2


def write_config(folder: Path, pipeline: Path, **more: Any) -> str:
    path = folder / "config.yaml"
    config = {
        "objective": "DiffusionDPO",
        "sampler": "SharedNoise",
        "backbone": {"name": "StableDiffusion", "path": str(pipeline)},
        "optimizer": {"name": "AdamW", "lr": 1.0e-3},
        "data": {
            "train": {"class_path": "tests.integration.conftest.NoisyPairs"},
            "batch_size": 4,
            "resolution": RESOLUTION,
        },
        "trainer": {"accelerator": "cpu", "max_steps": 10, "devices": 1},
        **more,
    }
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_plan_counts_pairs_writes_nothing_and_takes_overrides(
    alignkit: Run, pipeline: Path, tmp_path: Path
) -> None:
    """48 of 60 toy pairs are no ties, over 6 prompts."""
    path = write_config(tmp_path, pipeline)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = alignkit(
        "plan", "--config", path, "--data.batch_size", "6", "--pairs-per-second", "3", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["run"]["effective_batch"] == 6
    assert (found["run"]["pairs"], found["run"]["pairs_seen"], found["run"]["epochs"]) == (48, 60, 1.25)
    assert found["seconds"] == pytest.approx(20.0)
    assert found["disk"]["texts"] == 7 * 16 * 16 * 2
    assert found["memory"]["device"] == "cpu"
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_finds_the_largest_batch(alignkit: Run, pipeline: Path, tmp_path: Path) -> None:
    """Of 6 pairs a step: in room for 2 and not for 3, and in room for all."""
    told = ["plan", "--config", write_config(tmp_path, pipeline), "--trainer.accumulate_grad_batches=3"]
    peaks = {}
    for size in (1, 2, 3, 6):
        options = [f"--data.batch_size={size}", f"--trainer.accumulate_grad_batches={6 // size}"]
        code, out, err = alignkit(*told, *options, "--json")
        assert code == 0, err
        peaks[size] = json.loads(out)["memory"]["peak"]
    room = (peaks[2] + peaks[3]) / 2 / 0.9 / 2**30
    code, out, err = alignkit(*told, "--data.batch_size=2", f"--fit-memory={room}", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["batch"] == ["--data.batch_size=2", "--trainer.accumulate_grad_batches=3"]
    assert (found["memory"]["peak"], found["run"]["effective_batch"]) == (peaks[2], 6)
    code, out, err = alignkit(*told, "--data.batch_size=2", "--fit-memory=64")
    assert code == 0, err
    assert "the largest batch that fits: --data.batch_size=6 --trainer.accumulate_grad_batches=1" in out


def test_plan_is_a_table(alignkit: Run, pipeline: Path, tmp_path: Path) -> None:
    code, out, err = alignkit("plan", "--config", write_config(tmp_path, pipeline))
    assert code == 0, err
    for told in ("52,004", "gradients", "peak", "cached latents", "effective batch", "give --pairs-per"):
        assert told in out


def test_plan_measures_real_batches(alignkit: Run, pipeline: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path, pipeline)
    code, out, err = alignkit("plan", "--config", path, "--measure", "2", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["measured"]["batches"] == 2
    assert found["pairs_per_second"] == pytest.approx(found["measured"]["pairs_per_second"])
    assert found["seconds"] == pytest.approx(40 / found["pairs_per_second"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("more", "arguments", "message"),
    [
        ({"reference": "alignkit.policy.AdaptersOff"}, "", "AdaptersOff: the policy has no adapters"),
        ({"objctive": "DMPO"}, "", "objctive: unknown key"),
        ({}, "--pairs-per-second 0", "--pairs-per-second must be positive, got 0"),
        ({}, "--fit-memory 0", "--fit-memory must be positive, got 0"),
        ({}, "--fit-memory 0.00001", "--fit-memory 1e-05: a batch of one pair takes"),
        ({}, "--pairs -3", "--pairs must be positive, got -3"),
        ({}, "--trainer.devices many", "trainer.devices"),
    ],
)
def test_mistakes_and_what_does_not_go_together_are_refused(
    more: dict[str, Any], arguments: str, message: str, alignkit: Run, pipeline: Path, tmp_path: Path
) -> None:
    code, _, err = alignkit("plan", "--config", write_config(tmp_path, pipeline, **more), *arguments.split())
    assert code == 2
    assert message in err


def test_pairs_that_are_not_at_hand_are_asked_for(alignkit: Run, pipeline: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path, pipeline)
    code, out, err = alignkit(
        "plan", "--config", path, "--data.train", "PickAPic", "--data.train.path", "nowhere", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["run"]["pairs"] is None
    assert found["disk"]["latents"] is None
    assert [note for note in found["notes"] if "give --pairs" in note and "nowhere" in note], found["notes"]
