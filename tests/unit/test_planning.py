"""What a plan is made of: sizes of runs, disk, memory that is alive, networks without weights."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from alignkit.mistakes import UsageError
from alignkit.planning.disk import disk
from alignkit.planning.fitting import fitted
from alignkit.planning.run import counted, on_gpu, run_of
from alignkit.planning.tracking import LiveMemory, gpu_normalisation, storages, tensors_of
from alignkit.weightless import is_weightless, stand_in


def config(**trainer: Any) -> dict[str, Any]:
    """A whole config, as far as the size of a run depends on it."""
    usual = {"num_nodes": 1, "devices": 8, "accumulate_grad_batches": 32, "max_steps": 2000}
    return {
        "trainer": {**usual, "max_epochs": None, "accelerator": "auto", **trainer},
        "data": {"batch_size": 8},
        "model": {"warmup_steps": 500},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2.048e-5}},
    }


def test_a_run_of_the_authors() -> None:
    """8 x 8 x 32 = 2048 pairs a step, 2000 steps of them, of 851,293 pairs; 24 hours at 47.4 pairs/s."""
    run = run_of(config(), 851_293)
    assert (run.effective_batch, run.steps, run.seen) == (2048, 2000, 4_096_000)
    assert run.epochs == pytest.approx(4.8115, abs=1e-4)
    assert run.seconds(4_096_000 / 86_400) == pytest.approx(86_400)
    assert run.schedule == "4.1e-08 at first, rising to step 500, then constant"


@pytest.mark.parametrize(
    ("trainer", "devices"),
    [
        ({"devices": "3", "num_nodes": 2}, 6),
        ({"devices": [0, 2]}, 2),
        ({"devices": "0, 2, 3"}, 3),
        ({"devices": "auto"}, max(1, torch.cuda.device_count())),
    ],
)
def test_devices_are_counted_over_nodes(trainer: Mapping[str, Any], devices: int) -> None:
    assert run_of(config(**trainer), None).devices == devices


def test_devices_that_cannot_be_counted_are_refused() -> None:
    with pytest.raises(UsageError, match=r"trainer\.devices: cannot count 'many'"):
        run_of(config(devices="many"), None)


def test_epochs_become_steps() -> None:
    """1000 pairs on 8 devices: 15 batches of 8 each; 4 at a time make 4 steps, the last one of 3."""
    run = run_of(config(max_steps=-1, max_epochs=3, accumulate_grad_batches=4), 1000)
    assert run.steps == 3 * 4
    assert run_of(config(max_steps=-1, max_epochs=3), None).steps is None
    assert run_of(config(max_steps=-1), 1000).steps == 1000  # one step of 15 batches an epoch


def test_the_largest_batch_that_fits_keeps_the_pairs_of_a_step() -> None:
    """A GiB a pair and 2 besides, of which 0.9 x 24 = 21.6 GiB: 16 of 8 x 32 pairs; 4 sizes are tried."""
    asked: list[int] = []

    def peak(one: dict[str, Any]) -> int:
        asked.append(one["data"]["batch_size"])
        assert one["data"]["batch_size"] * one["trainer"]["accumulate_grad_batches"] == 256
        return (2 + asked[-1]) * 2**30

    given = config()
    found = fitted(given, 24, peak)
    assert (found["data"]["batch_size"], found["trainer"]["accumulate_grad_batches"]) == (16, 16)
    assert (given["data"]["batch_size"], found["optimizer"]) == (8, given["optimizer"])
    assert len(asked) <= 4
    with pytest.raises(
        UsageError, match=r"--fit-memory 3: a batch of one pair takes 3 GiB, and 90% of 3 GiB"
    ):
        fitted(given, 3, peak)


def test_ties_count_where_they_are_kept() -> None:
    labels = [1.0, 0.5, 0.0, 0.5]
    assert (counted(labels, "drop"), counted(labels, "coin")) == (2, 4)


def test_a_plan_is_for_a_gpu_unless_the_config_says_cpu() -> None:
    assert on_gpu(config())
    assert not on_gpu(config(accelerator="cpu"))


def test_disk_of_sd15() -> None:
    """A pair's latents: 2 pictures x mean and logvar x 4 x 64 x 64 x 2 bytes = 128 KiB."""
    taken = disk({"latent": (4, 64, 64), "text": (77, 768)}, checkpoint=7, pairs=1000, prompts=9)
    assert taken.latents == 1000 * 128 * 1024
    assert taken.prompt == 77 * 768 * 2
    assert taken.texts == 10 * 77 * 768 * 2
    unknown = disk({"latent": (4, 64, 64), "text": (77, 768)}, checkpoint=7, pairs=None, prompts=None)
    assert (unknown.latents, unknown.texts, unknown.checkpoint) == (None, None, 7)


def test_live_memory_is_that_of_storages() -> None:
    """1 KiB known and not counted, 4 KiB made, a view of it, 8 KiB made and lost: peak 12, 4 left."""
    known = torch.zeros(256)
    with LiveMemory([known]) as live:
        made = torch.zeros(1024)
        view = made[:10]
        lost = torch.zeros(2048)
        del lost
        known.add_(1.0)
        known.view(2, 128)
        assert (live.live, live.peak) == (4096, 12288)
        assert live.since() == 12288
        assert live.since() == 4096
        del made
        assert live.live == 4096  # the view holds it
        del view
        assert live.live == 0


def test_what_autograd_keeps_is_counted_until_backward() -> None:
    """Sigmoid keeps its output, 400 bytes; its input is an intermediate nobody needs afterwards."""
    weight = torch.zeros(100, requires_grad=True)
    with LiveMemory([weight]) as live:
        loss = torch.sigmoid(weight * 2).sum()
        assert live.live == 400 + 4
        loss.backward()
        assert weight.grad is not None
        del loss
        assert live.live == 400  # the gradient


def test_shared_storages_count_once() -> None:
    tensor = torch.zeros(10)
    assert storages([tensor, tensor[:5], torch.zeros(1)]) == 44


def test_stand_ins_have_shapes_types_and_what_is_trained() -> None:
    with torch.device("meta"):
        assert is_weightless()
        network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).half()
    assert not is_weightless()
    network[0].weight.requires_grad_(False)
    wanted = [(x.shape, x.dtype, x.requires_grad) for x in tensors_of(network)]
    with FakeTensorMode():
        stand_in(network)
    assert [(x.shape, x.dtype, x.requires_grad) for x in tensors_of(network)] == wanted
    assert {str(x.device) for x in tensors_of(network)} == {"cpu"}


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.LayerNorm(8)])
def test_a_gpu_normalises_in_float32_under_mixed_precision(norm: nn.Module) -> None:
    x = torch.zeros(4, 8, dtype=torch.bfloat16)
    with gpu_normalisation():
        with torch.autocast("cpu", torch.bfloat16):
            assert norm(x).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
            assert norm(x.float()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16
