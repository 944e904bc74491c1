"""Pairs a second and core that training reads: of a cache, and of pictures.

    python benchmarks/data.py --out benchmarks/results

The bar: at least 20,000 pairs a second and core from a cache of latents of Stable Diffusion 1.5's size, means
and log-variances of 4 x 64 x 64 in float16, files in the page cache. Both are what `alignkit fit` iterates
over: AlignData's loader, with its order, data set and collation; "opened" is what comes after the move to the
device, here the processor: float32, and deviations of log-variances. "copied" copies as many bytes once, of
rows at random in memory. Seconds are CPU seconds of this process and its workers together, all ways in turn
and back.
"""

import argparse
import io
import multiprocessing
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from report import Promise, header, keep, write
from torch import Tensor

from alignkit import PairRecord, PairSource
from alignkit.data import AlignData
from alignkit.data.cache.command import CacheProgress, make
from alignkit.data.cache.making import FILE_ROWS, Making, Wanted
from alignkit.data.cache.manifest import Origin
from alignkit.data.cache.store import StoredBatch
from alignkit.data.cache.table import source_hash
from alignkit.data.pictures import framed
from alignkit.testing import ToyBackbone
from alignkit.training import quiet_libraries
from alignkit.types import Moments

RESOLUTION, FACTOR, CHANNELS = 512, 8, 4
PICTURES, PROMPTS, USERS = 16, 500, 100
PAIR_BYTES = 2 * 2 * CHANNELS * (RESOLUTION // FACTOR) ** 2 * 2
BAR = 20_000
# batches of pictures that are timed at once: one costs as much as hundreds of cached ones
FEW = 4
Read = Callable[[], int]


class Pairs(PairSource):
    """Pairs of JPEGs whose bytes all differ, and whose pictures are a few.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        told = "a pear in the style of a painter of the nineteenth century, number"
        self._prompts = [f"{told} {index % PROMPTS}" for index in range(count)]
        self._users = [f"user{index % USERS}" for index in range(count)]
        random = np.random.default_rng(0)
        self._pictures = []
        for _ in range(PICTURES):
            coarse = Image.fromarray(random.integers(256, size=(64, 64, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            coarse.resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            self._pictures.append(buffer.getvalue())

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> PairRecord:
        # what follows the end of a JPEG is not read, but tells its bytes from others
        image_0, image_1 = (
            self._pictures[side % PICTURES] + side.to_bytes(8, "big") for side in (2 * index, 2 * index + 1)
        )
        return PairRecord(index, self._prompts[index], image_0, image_1, index % 2, self._users[index])

    def labels(self) -> list[float]:
        return [float(index % 2) for index in range(self.count)]

    def prompts(self) -> list[str]:
        return self._prompts

    def users(self) -> list[str]:
        return self._users

    def ids(self) -> list[int]:
        return list(range(self.count))


class Shrinking(ToyBackbone):
    """Its latents have the size of those of Stable Diffusion 1.5."""

    def encode_images(self, image_NCHW: Tensor) -> Moments:
        small_NCHW = F.avg_pool2d(image_NCHW.float(), FACTOR)
        mean_NCHW = torch.cat([small_NCHW, small_NCHW.mean(1, keepdim=True)], 1)
        return Moments(mean_NCHW, mean_NCHW.abs() + 0.1)


def make_cache(folder: Path, pairs: Pairs) -> None:
    """Makes a cache as the command does."""
    data, backbone = AlignData(pairs, resolution=RESOLUTION), Shrinking()
    sources = {split: source_hash(source) for split, source in data.sources().items()}
    origin = Origin(backbone.encoder_hashes(), RESOLUTION, framed(data.max_pixels), sources, "float16")
    wanted = Wanted(folder, origin, 16, FILE_ROWS, lambda size: "")
    where = {"accelerator": "cpu", "devices": 1}
    make(Making(backbone, data, wanted), folder, CacheProgress(), where, option="--data.cache")


def reading(data: AlignData, count: int, *, opened: bool) -> Read:
    """Reads so many batches, epoch after epoch; returns the number of pairs."""
    data.setup("fit")
    loader = data.train_dataloader()

    def epochs() -> Any:
        while True:
            yield from loader

    batches = epochs()

    def read() -> int:
        pairs = 0
        for _ in range(count):
            batch = next(batches)
            if opened:
                batch = data.on_after_batch_transfer(batch, 0)
            pairs += len((batch.batch if isinstance(batch, StoredBatch) else batch).prompts)
        return pairs

    return read


def copying(pairs: int, batch_size: int, count: int) -> Read:
    """Copies pairs' bytes out of memory, batch by batch."""
    source_N = torch.ones(pairs, PAIR_BYTES, dtype=torch.uint8)
    order = np.random.default_rng(0)

    def copy() -> int:
        for _ in range(count):
            torch.from_numpy(source_N.numpy().take(order.integers(pairs, size=batch_size), axis=0))
        return count * batch_size

    return copy


def cpu_seconds() -> float:
    """Of this process and of the worker processes that it has."""
    workers = [process.pid for process in multiprocessing.active_children()]
    threads = [task for pid in workers for task in Path(f"/proc/{pid}/task").iterdir()]
    told = sum(int((task / "schedstat").read_text().split()[0]) for task in threads)
    return time.process_time() + told / 1e9


def rates(ways: Mapping[str, Read], rounds: int) -> dict[str, list[float]]:
    """Pairs a second of each way, in each round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1 + rounds):
        took = dict.fromkeys(ways, 0.0)
        pairs = dict.fromkeys(ways, 0)
        for name in [*ways, *reversed(ways)]:
            before = cpu_seconds()
            pairs[name] += ways[name]()
            took[name] += cpu_seconds() - before
        if number:
            for name in ways:
                found[name].append(pairs[name] / took[name])
    return found


def ways_to_read(
    folder: Path, pairs: Pairs, sizes: Sequence[int], workers: Sequence[int], together: int
) -> dict[str, Read]:
    """All that are compared; each reads about ``together`` cached pairs at a time."""
    ways: dict[str, Read] = {}

    def data(size: int, num_workers: int, cache: str | None) -> AlignData:
        return AlignData(pairs, batch_size=size, resolution=RESOLUTION, num_workers=num_workers, cache=cache)

    for size in sizes:
        ways[f"copied, batches of {size}"] = copying(len(pairs), size, together // size)
        for name, opened in (("cached", False), ("cached and opened", True)):
            told = data(size, 0, str(folder))
            ways[f"{name}, batches of {size}"] = reading(told, together // size, opened=opened)
    size = sizes[0]
    for number in workers:
        told = data(size, number, str(folder))
        ways[f"cached, batches of {size}, {number} workers"] = reading(told, together // size, opened=False)
    for number in (0, *workers):
        name = f"pictures, batches of {size}" + (f", {number} workers" if number else "")
        ways[name] = reading(data(size, number, None), FEW, opened=False)
    return ways


def table(found: Mapping[str, Sequence[float]]) -> list[str]:
    """Pairs a second, bytes of latents a second, and the bar."""
    lines = [
        "| way | pairs/s and core, median | least | most | GB/s of latents | bar |",
        "|---|---|---|---|---|---|",
    ]
    for name, rate in found.items():
        middle = statistics.median(rate)
        bar = f"{BAR:,}" if is_promised(name) else ""
        moved = "" if name.startswith("pictures") else f"{middle * PAIR_BYTES / 1e9:.2f}"
        lines.append(f"| {name} | {middle:,.0f} | {min(rate):,.0f} | {max(rate):,.0f} | {moved} | {bar} |")
    return lines


def is_promised(way: str) -> bool:
    """Whether the bar is for it: reading alone, in one process."""
    return way.startswith("cached,") and "workers" not in way


def main() -> None:
    """Makes a cache, reads it in all ways, and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the table; it is only printed without it")
    parser.add_argument("--pairs", type=int, default=2048, help="pairs of the cache, 0.13 MB each (2048)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32], help="pairs of a batch (8 32)")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="processes that read (1 2)")
    parser.add_argument("--rounds", type=int, default=9, help="how many rounds count (9)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as name:
        folder, pairs = Path(name), Pairs(options.pairs)
        make_cache(folder, pairs)
        ways = ways_to_read(folder, pairs, options.sizes, options.workers, options.pairs // 2)
        found = rates(ways, options.rounds)
    # PyTorch waits for each worker that stands in the middle of an epoch
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        process.kill()
    cached = f"{options.pairs * PAIR_BYTES / 1e6:.0f} MB of latents in files, all in the page cache."
    lines = [*header("Reading pairs", cached), *table(found)]
    print("\n".join(lines))
    if options.out:
        write(lines, options.out, "data")
        promises = [
            Promise(f"pairs/s and core, {name}, SD 1.5's latents", least=BAR, found=statistics.median(rate))
            for name, rate in found.items()
            if is_promised(name)
        ]
        keep(promises, options.out, "data")


if __name__ == "__main__":
    main()
