"""CPU time of a picture: alignkit's, and diffusers' pipeline called with one prompt at a time.

    python benchmarks/sampling.py --out benchmarks/results

Claims: the same pictures, at most 2 of 255 apart anywhere, in at most 1/1.5 of the time, with guidance and
without; and without guidance the network sees every latent once a step. `alignkit generate`, `evaluate`, the
sample grids and self-play all draw by the function that is timed here. Inversion: `inversion.py`.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from report import Promise, header, keep, write
from timed import seconds
from torch import Tensor, nn

from alignkit.evaluation.drawing import drawn
from alignkit_diffusers.stable_diffusion import StableDiffusion
from alignkit_emoji.source import EmojiPairs

WITHIN, BAR = 2 / 255, 1.5


class Drawing(NamedTuple):
    """What is drawn: prompts, a seed for each, steps, guidance."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    num_steps: int
    guidance: float


def ours(what: Drawing, backbone: StableDiffusion, network: nn.Module) -> Tensor:
    """Pictures in one batch, (N, C, H, W)."""
    return drawn(
        backbone,
        network,
        what.prompts,
        seeds=what.seeds,
        num_steps=what.num_steps,
        guidance=what.guidance,
    )


def one_by_one(what: Drawing, pipeline: StableDiffusionPipeline) -> Tensor:
    """Pictures of a pipeline that is called for each, (N, C, H, W)."""
    images = [
        pipeline(
            prompt,
            num_inference_steps=what.num_steps,
            guidance_scale=what.guidance,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        ).images
        for prompt, seed in zip(what.prompts, what.seeds, strict=True)
    ]
    return (torch.cat(images) * 255).round() / 255


def rows_seen(network: nn.Module, function: Callable[[], Tensor]) -> int:
    """How many latents the network sees in a call."""
    seen: list[int] = []
    hook = network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    function()
    hook.remove()
    return sum(seen)


def measured(what: Drawing, rounds: int) -> tuple[str, list[Promise]]:
    """A row of the table, and what was found of what is promised.

    Raises:
        ValueError: the pictures are not the same.
    """
    backbone = StableDiffusion("alignkit_emoji:base")
    network = backbone.build_policy().eval()
    with files("alignkit_emoji").joinpath("base") as folder:
        pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    # else it cuts off what it takes for x0, which no paper's method has
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)

    def batched() -> Tensor:
        return ours(what, backbone, network)

    def single() -> Tensor:
        return one_by_one(what, pipeline)

    difference = float((batched() - single()).abs().max())
    if difference > WITHIN + 1e-6:
        raise ValueError(f"the pictures differ by {255 * difference:.0f} of 255")
    taken = [(seconds(batched), seconds(single), seconds(single), seconds(batched)) for _ in range(rounds)]
    batch = [(a + d) / 2 for a, _, _, d in taken]
    alone = [(b + c) / 2 for _, b, c, _ in taken]
    ratio = statistics.median(b / a for a, b in zip(batch, alone, strict=True))
    count = len(what.prompts)
    seen = rows_seen(network, batched) / count / what.num_steps
    told = f"a picture at guidance {what.guidance:g}, against diffusers' pipeline with one prompt at a time"
    promises = [
        Promise(f"{told}: times faster", least=BAR, found=ratio),
        Promise(f"{told}: most that a value differs, of 255", most=255 * WITHIN, found=255 * difference),
    ]
    row = (
        f"| {count} | {what.num_steps} | {what.guidance:g} | {1e3 * min(alone) / count:.0f} "
        f"| {1e3 * min(batch) / count:.0f} | {ratio:.2f} ({min(alone) / min(batch):.2f}) "
        f"| {255 * difference:.0f} | {seen:g} |"
    )
    return row, promises


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the table; it is only printed without it")
    parser.add_argument("--pictures", type=int, default=32, help="how many are drawn (32)")
    parser.add_argument("--steps", type=int, default=20, help="DDIM steps (20)")
    parser.add_argument("--rounds", type=int, default=7, help="how many rounds count (7)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    prompts = sorted(set(EmojiPairs("test", "majority").prompts()))[: options.pictures]
    lines = [
        *header("Sampling", "The embedded base; ratios: median of the rounds, in brackets of the least."),
        "| pictures | steps | guidance | ms a picture, one prompt at a time | ms a picture, alignkit "
        "| times faster | most that a value differs, of 255 | latents seen a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    promises: list[Promise] = []
    for guidance in (1.0, 7.5):
        what = Drawing(prompts, range(len(prompts)), options.steps, guidance)
        row, found = measured(what, options.rounds)
        lines.append(row)
        promises += found
        print(row)
    if options.out:
        write(lines, options.out, "sampling")
        keep(promises, options.out, "sampling")


if __name__ == "__main__":
    main()
