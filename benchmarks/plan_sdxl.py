"""Plans a run of SDXL on 8, 64 and 512 GPUs, from measured and published figures.

    python benchmarks/plan_sdxl.py --out benchmarks

Memory and disk are what `alignkit plan` says of SDXL's real shapes, no weights read; operations are those of
gpu.py, which a test counts again. What a GPU will reach was not measured: times are given for two shares of
its matmul ceiling, and every figure says where it is from.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from diffusers import AutoencoderKL
from report import write
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from shapes import FULL, SDXL, write_shape

from alignkit.cli import main as alignkit

GPUS = (8, 64, 512)
NODE = 8
# of Diffusion-DPO: its launcher, and the pairs of its paper
STEPS, EFFECTIVE, PAIRS = 2000, 2048, 851_293
BATCH = 4
assert SDXL.tflop is not None
PAIR_TFLOP = SDXL.tflop[FULL]
CEILING = 788.0
BUS = 400.0
# of the ceiling: what is promised, and what was published of another model
LIKELY, CAREFUL = 0.40, 0.28
A100, A100_HOURS = 312.0, 2560
COUNTED, PUBLISHED, RECORDED, DERIVED, PROMISED = "counted", "published", "recorded", "derived", "promised"


class Given(NamedTuple):
    """A figure that the plan starts from."""

    what: str
    value: str
    mark: str
    source: str


GIVEN = (
    Given("pairs without ties", f"{PAIRS:,}", PUBLISHED, "Diffusion-DPO, https://arxiv.org/abs/2311.12908"),
    Given(
        "optimizer steps, pairs in each",
        f"{STEPS:,} x {EFFECTIVE:,}",
        PUBLISHED,
        "launchers of https://github.com/SalesforceAIResearch/DiffusionDPO at 5233e75",
    ),
    Given(
        "operations of a pair: policy forward and backward, reference forward",
        f"{PAIR_TFLOP:.2f} TFLOP",
        COUNTED,
        "`pytest tests/benchmarks/test_gpu.py -m slow -k tflop`",
    ),
    Given("weights of the UNet", f"{SDXL.weights:,}", COUNTED, "`python benchmarks/plan_sdxl.py`"),
    Given(
        "matmul ceiling of an H200, bfloat16, 8192 x 8192",
        f"{CEILING:.0f} TFLOP/s (769 to 798)",
        RECORDED,
        "before this project; `python benchmarks/gpu.py` measures it anew",
    ),
    Given(
        "share of the ceiling that steps reach",
        f"{LIKELY:.0%}",
        PROMISED,
        "[gpu.md](results/gpu.md): not yet run",
    ),
    Given(
        "the same of a UNet of Stable Diffusion 2 on 8 A100, from precomputed latents",
        f"{CAREFUL:.0%}",
        DERIVED,
        "290 pictures/s at 512 x 512, README of https://github.com/mosaicml/diffusion at 066e68f",
    ),
    Given(
        "that UNet on 128 GPUs against 8",
        "15.8 times as fast",
        PUBLISHED,
        "the same README: 4590 against 290 pictures/s",
    ),
    Given(
        "bus bandwidth of an all-reduce, H200 with NVLink and 8 NICs of 400 Gb/s a node",
        f"{BUS:.0f} GB/s",
        PUBLISHED,
        "400 to 450 expected, https://saturncloud.io/blog/crusoe-nccl-cluster-validation; 8 NICs have 400",
    ),
    Given(
        "training of Diffusion-DPO SDXL",
        f"{A100_HOURS:,} A100 hours",
        PUBLISHED,
        "table 6 of LPO, https://arxiv.org/abs/2502.01051",
    ),
)


def encode_tflop() -> float:
    """Operations of the VAE's encoder for a picture, TFLOP."""
    side = SDXL.resolution
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        AutoencoderKL(**SDXL.vae).encode(torch.empty(1, 3, side, side))
    return counter.get_total_flops() / 1e12


def planned(gpus: int) -> dict[str, Any]:
    """What `alignkit plan` says of the run on so many GPUs."""
    with tempfile.TemporaryDirectory() as name, io.StringIO() as said:
        stack = write_shape(SDXL, Path(name), pairs=1)
        content = {
            "objective": {"name": "DiffusionDPO", "beta": 5000.0},
            "sampler": "SharedNoise",
            "backbone": {
                "name": "StableDiffusionXL",
                "path": str(stack.pipeline),
                "frozen_dtype": "bfloat16",
            },
            "optimizer": {"name": "AdamW", "lr": 2.048e-5, "fused": True},
            "data": {
                "train": {"name": "JSONLines", "path": str(stack.pairs)},
                "batch_size": BATCH,
                "resolution": SDXL.resolution,
                "cache": f"{name}/cache",
            },
            "samples": {"num_prompts": 0},
            "evaluation": {"max_prompts": 0},
            "trainer": {
                "accelerator": "gpu",
                "devices": NODE,
                "num_nodes": gpus // NODE,
                "strategy": "ddp",
                "precision": "bf16-mixed",
                "max_steps": STEPS,
                "accumulate_grad_batches": EFFECTIVE // gpus // BATCH,
                "gradient_clip_val": 1.0,
            },
        }
        path = Path(name) / "sdxl.yaml"
        path.write_text(yaml.safe_dump(content))
        with contextlib.redirect_stdout(said):
            if alignkit(["plan", "--config", str(path), "--pairs", str(PAIRS), "--json"]):
                raise RuntimeError(f"alignkit plan failed: {said.getvalue()}")
        told: dict[str, Any] = json.loads(said.getvalue())
    return told


def arithmetic(gpus: int, share: float) -> float:
    """Seconds of an optimizer step that a GPU computes."""
    return EFFECTIVE / gpus * PAIR_TFLOP / (share * CEILING)


def all_reduce(gpus: int) -> float:
    """Seconds in which float32 gradients are summed over all GPUs; NCCL's definition of bus bandwidth."""
    return 2 * (gpus - 1) / gpus * 4 * SDXL.weights / 1e9 / BUS


def hours(gpus: int, share: float) -> float:
    """Of the run, nothing of the all-reduce hidden behind the backward pass."""
    return STEPS * (arithmetic(gpus, share) + all_reduce(gpus)) / 3600


def shared(gpus: int, share: float) -> float:
    """The all-reduce's share of a step, nothing of it hidden."""
    return all_reduce(gpus) / (arithmetic(gpus, share) + all_reduce(gpus))


def speed(gpus: int, share: float) -> float:
    """Pairs a second of all GPUs."""
    return STEPS * EFFECTIVE / hours(gpus, share) / 3600


def page() -> list[str]:
    """The plan, as lines of Markdown."""
    plans = {gpus: planned(gpus) for gpus in GPUS}
    gib, one = 2**30, plans[GPUS[0]]

    def row(what: str, mark: str, cell: Callable[[int], str]) -> str:
        return f"| {what} | {' | '.join(cell(gpus) for gpus in GPUS)} | {mark} |"

    cached = one["disk"]["latents"]
    read = cached / PAIRS
    paper, most = STEPS * EFFECTIVE * PAIR_TFLOP / 3600 / A100 / A100_HOURS, GPUS[-1]
    encoding = encode_tflop()
    encode = 2 * PAIRS * encoding / (LIKELY * CEILING) / 3600
    return [
        "# An SDXL run on 8, 64 and 512 GPUs",
        "",
        "`python benchmarks/plan_sdxl.py --out benchmarks`",
        "",
        "Diffusion-DPO's run of SDXL at 1024 x 1024, all weights trained, from a cache of latents, on nodes "
        f"of {NODE} H200. No GPU has run it. **Counted** is counted here by the command beside it, "
        "**published** is what the source says, **recorded** was measured before this project, **promised** "
        "is still to be shown, and **derived** is arithmetic on those.",
        "",
        "## What is given",
        "",
        "| | | | source |",
        "|---|---|---|---|",
        *(f"| {it.what} | {it.value} | {it.mark} | {it.source} |" for it in GIVEN),
        "",
        "## The plan",
        "",
        f"| | {' | '.join(f'{gpus} GPUs' for gpus in GPUS)} | |",
        "|---|---|---|---|---|",
        row("nodes x GPUs x pairs x batches", DERIVED, lambda n: _made(plans[n])),
        row("epochs", COUNTED, lambda n: f"{plans[n]['run']['epochs']:.2f}"),
        row("memory of tensors on a GPU, GiB", COUNTED, lambda n: f"{plans[n]['memory']['peak'] / gib:.1f}"),
        row(f"arithmetic of a step at {LIKELY:.0%}, s", DERIVED, lambda n: f"{arithmetic(n, LIKELY):.2f}"),
        row(f"the same at {CAREFUL:.0%}, s", DERIVED, lambda n: f"{arithmetic(n, CAREFUL):.2f}"),
        row("all-reduce of float32 gradients, s", DERIVED, lambda n: f"{all_reduce(n):.3f}"),
        row(
            f"of a step at {LIKELY:.0%}, if nothing of it is hidden",
            DERIVED,
            lambda n: f"{shared(n, LIKELY):.1%}",
        ),
        row(
            "hours of the run",
            DERIVED,
            lambda n: f"{hours(n, LIKELY):.2g} to {hours(n, CAREFUL):.2g}",
        ),
        row(
            "GPU hours",
            DERIVED,
            lambda n: f"{n * hours(n, LIKELY):.0f} to {n * hours(n, CAREFUL):.0f}",
        ),
        row(
            "pairs/s",
            DERIVED,
            lambda n: f"{speed(n, LIKELY):,.0f}",
        ),
        row(
            "latents read, MB/s, all GPUs",
            DERIVED,
            lambda n: f"{speed(n, LIKELY) * read / 1e6:,.0f}",
        ),
        "",
        f"Once, before: {cached / 1e9:.0f} GB of latents at most (counted by `alignkit plan`; pictures that "
        f"pairs share are stored once), {encode:.1f} GPU hours to encode them at {LIKELY:.0%} of the ceiling "
        f"(derived of {encoding:.2f} TFLOP a picture, counted). A checkpoint has "
        f"{one['disk']['checkpoint'] / 1e9:.1f} GB (counted).",
        "",
        "## What it says",
        "",
        f"- The published training took {A100_HOURS:,} A100 hours. The same operations are {paper:.0%} of "
        f"that at the {A100:.0f} TFLOP/s that an A100 has on paper (derived).",
        f"- With {most} GPUs a step is one batch of {BATCH} pairs for each, and takes "
        f"{arithmetic(most, LIKELY):.1f} s. More GPUs need smaller batches, in which launching kernels takes "
        "over, or larger steps, which is another run.",
        f"- The all-reduce takes {shared(most, LIKELY):.0%} of a step there if nothing of it is hidden. "
        "Where batches are accumulated, gradients are sent once a step (`no_sync`, tested).",
        f"- Reading does not limit: {most} GPUs need {speed(most, LIKELY):,.0f} pairs/s, 0.5 MB each, from "
        "all nodes together; one core reads more than 20,000 of a quarter of that size "
        "([promises.md](results/promises.md)).",
        "- How a step grows with batch, resolution, pairs, processes and points of a path was measured on "
        "CPUs: `python benchmarks/scaling.py`, [results](results).",
    ]


def _made(told: dict[str, Any]) -> str:
    run = told["run"]
    return f"{run['nodes']} x {NODE} x {run['batch_size']} x {run['accumulated']}"


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the page; it is only printed without it")
    options = parser.parse_args()
    lines = page()
    print("\n".join(lines))
    if options.out:
        write(lines, options.out, "scaling", dated=False)


if __name__ == "__main__":
    main()
