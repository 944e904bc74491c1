"""Devices as the command line names them, and what is sent to them."""

import argparse
import ctypes
import os

import torch
from torch import Tensor

# of glibc's malloc.h; above this size it asks the system for every block, and cannot be told a larger one
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK, ALL = 32 * 2**20, 2**31 - 1


def device(said: str) -> str:
    """A device that this machine has, for ``add_argument(type=device)``.

    Raises:
        ArgumentTypeError: there is none of that name.
    """
    known = available()
    try:
        where = torch.device(said)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{said!r} is no device; here are {', '.join(known)}") from None
    if where.type not in known:
        raise argparse.ArgumentTypeError(f"there is no {where.type} here, only {', '.join(known)}")
    count = known[where.type]
    if where.index is not None and where.index >= count:
        raise argparse.ArgumentTypeError(f"{said}: there are {count} here, counted from 0")
    return said


def available() -> dict[str, int]:
    """How many there are of each type; processors count as one."""
    found = {"cpu": 1}
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and torch.accelerator.is_available():
        found[accelerator.type] = torch.accelerator.device_count()
    return found


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; a GPU is not waited for."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def keep_freed_memory() -> None:
    """Has glibc keep the memory of freed tensors for the next ones, where networks run on the processor.

    Else it goes back to the system and is asked for again at every step: page faults, 3 to 4 % of the time
    of a step of 12.5 million weights. What the variables ``MALLOC_..._`` say is left as it is.
    """
    if list(available()) != ["cpu"] or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(M_TRIM_THRESHOLD, ALL)
