"""Statistics over all processes."""

from pathlib import Path

import torch
from torch import distributed, multiprocessing

from alignkit.distributed import gathered


def test_a_single_process_keeps_its_values_without_gradient() -> None:
    value_B = torch.randn(3, requires_grad=True)
    result = gathered(value_B)
    assert torch.equal(result, value_B)
    assert not result.requires_grad


def _worker(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    value_B = torch.tensor([10.0 * rank, 10.0 * rank + 1], requires_grad=True)
    torch.save(gathered(value_B), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def test_processes_see_each_other_in_the_order_of_their_ranks(tmp_path: Path) -> None:
    multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), torch.tensor([0.0, 1.0, 10.0, 11.0]))
