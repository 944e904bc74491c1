"""No step waits for the device, but those that are logged: what is read of a tensor is counted on the CPU."""

import copy
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning_utilities.core.apply_func import apply_to_collection

from alignkit.data import AlignData
from alignkit.types import Batch
from tests.integration.test_bank import TINY, done, written

Run = Callable[..., tuple[int, str, str]]
READING = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__array__"}


class Remote(torch.Tensor):
    """As of a device: it and whatever is computed from it notes who reads it, while anybody watches."""

    watched = False
    read: list[str] = []  # noqa: RUF012 # of the one run at a time

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if cls.watched and getattr(func, "__name__", "") in READING:
            ours = [frame for frame in traceback.extract_stack() if "site-packages" not in frame.filename]
            cls.read.append(f"{func.__name__}: {ours[-2].filename}:{ours[-2].lineno}")
        return super().__torch_function__(func, types, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        plain: torch.Tensor = copy.deepcopy(self.as_subclass(torch.Tensor), memo)
        return plain


class Watch(pl.Callback):
    """While steps are done."""

    def on_train_start(self, *_: object) -> None:
        Remote.watched = True

    def on_validation_start(self, *_: object) -> None:
        Remote.watched = False

    def on_train_end(self, *_: object) -> None:
        Remote.watched = False


@pytest.fixture(autouse=True)
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Batches of training come from the device."""
    opened = AlignData.on_after_batch_transfer

    def arrived(data: AlignData, batch: Any, dataloader_idx: int) -> Batch:
        found: Batch = opened(data, batch, dataloader_idx)
        assert found.host_B2 is not None
        assert data.trainer is not None
        if not data.trainer.global_step:  # the first step is held to what it must be
            return found
        return apply_to_collection(found, torch.Tensor, lambda tensor: tensor.as_subclass(Remote))

    monkeypatch.setattr(AlignData, "on_after_batch_transfer", arrived)
    monkeypatch.setattr(Remote, "read", [])
    yield
    Remote.watched = False


METHODS = {
    "Diffusion-DPO": "",
    "accumulated": "--trainer.accumulate_grad_batches=2 --trainer.gradient_clip_val=1.0",
    "DMPO": "--objective=DMPO",
    "SEE-DPO": "--objective=SEEDPO",
    "IPO": "--objective=IPO",
    "KTO": "--objective=KTO",
    "MaPO": "--objective=MaPO",
    "SFT": "--objective=SFT",
    "Adaptive-DPO": "--weighting=MinorityAware --weighting.warmup_steps=0",
    "PPD": "--conditioner=UserTokens --conditioner.encoder=tests.plugins.ppd.people.Counting",
    "LoRA": "--backbone.lora.rank=2",
    "averaged": "--trainer.callbacks+=alignkit.callbacks.EMA",
}


def waits(alignkit: Run, config: str, *options: str) -> list[str]:
    done(alignkit, "cache", "--config", config, "--out", "cache")
    steps = "--optimizer.fused=true --trainer.log_every_n_steps=100 --trainer.max_steps=4 --run=run"
    watch = (
        "--trainer.callbacks+=tests.integration.test_waiting.Watch --trainer.enable_checkpointing=false "
        "--evaluation.max_prompts=0"
    )
    done(alignkit, "fit", "--config", config, *steps.split(), *watch.split(), *options)
    return Remote.read


@pytest.mark.parametrize("name", METHODS)
def test_no_step_reads_what_is_on_the_device(
    name: str, alignkit: Run, pipeline: Path, tmp_path: Path
) -> None:
    config = written(tmp_path, TINY.format(pipeline=pipeline))
    assert waits(alignkit, config, *METHODS[name].split()) == []


@pytest.mark.parametrize("family", ["StableDiffusionXL"])
def test_no_family_reads_what_is_on_the_device(
    family: str, alignkit: Run, xl_pipeline: Path, tmp_path: Path
) -> None:
    text = TINY.format(pipeline=xl_pipeline).replace("name: StableDiffusion", f"name: {family}")
    assert waits(alignkit, written(tmp_path, text)) == []


def test_a_step_that_is_logged_does(alignkit: Run, pipeline: Path, tmp_path: Path) -> None:
    """Else nothing would be counted."""
    config = written(tmp_path, TINY.format(pipeline=pipeline))
    assert waits(alignkit, config, "--trainer.log_every_n_steps=2") != []
