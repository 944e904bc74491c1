"""`alignkit invert`: how well a config's model inverts held-out pictures, before anything is trained.

Shape suffixes: N pictures; P points of a path; C H W.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from rich.progress import track
from torch import Tensor, nn

from alignkit import Backbone, Encoded
from alignkit.building import build, read
from alignkit.catalog import Catalog
from alignkit.commandline import Parser, refusals
from alignkit.data import AlignData
from alignkit.data.dataset import PairDataset
from alignkit.devices import device
from alignkit.evaluation.sheet import contact_sheet, to_pictures
from alignkit.policy import BoundDenoiser
from alignkit.training import quiet_libraries
from alignkit_inversion_dpo.functional import round_trip_error, sample
from alignkit_inversion_dpo.inversion import Inversion, noise_estimate
from alignkit_inversion_dpo.sampler import DDIMInversion, DDIMInversionDeviation

BATCH_SIZE = 32
COLUMNS = 8
REPORT = "inversion.json"
SHEET = "inversion.png"


class Pictures(NamedTuple):
    """Different pictures in [-1, 1], and what each shows."""

    image_NCHW: Tensor
    prompts: tuple[str, ...]

    def part(self, first: int, count: int) -> "Pictures":
        """Some of them."""
        return Pictures(self.image_NCHW[first : first + count], self.prompts[first : first + count])


class Row(NamedTuple):
    """What came out with one number of steps.

    Args:
        num_steps: transitions of the inversion.
        round_trip: root of the mean squared error of inverting and sampling back, as a share of the spread of
            the latents that it began with.
        spread: standard deviation of all numbers at the noisy end; 1 in noise.
        mean: their mean; 0 in noise.
        seconds: of inverting.
    """

    num_steps: int
    round_trip: float
    spread: float
    mean: float
    seconds: float

    def told(self) -> str:
        """Its line of the table."""
        figures = f"{self.round_trip:10.2%}  {self.spread:6.3f}  {self.mean:+6.3f}  {self.seconds:7.1f}"
        return f"{self.num_steps:5}  {figures}"


def main(catalog: Catalog, arguments: list[str]) -> int:
    """Runs the command; returns the exit code.

    Raises:
        UsageError: a user's mistake. Any other error keeps its traceback.
    """
    quiet_libraries()
    options = parser().parse_args(arguments)
    with refusals():
        _invert(catalog, options)
    return 0


def parser() -> Parser:
    """The options of the command."""
    options = Parser(prog="alignkit invert", description=(__doc__ or "").split("\n", 1)[0])
    options.add_argument("--config", required=True, help="a config, packaged or not")
    options.add_argument(
        "--steps", type=int, nargs="+", default=[10, 20, 50], help="numbers of steps to try (10 20 50)"
    )
    options.add_argument("--num-pictures", type=int, default=64, help="held-out pictures (64)")
    options.add_argument("--guidance", type=float, help="classifier-free guidance; the config's if not given")
    options.add_argument("--out", type=Path, help=f"folder for {REPORT} and {SHEET}")
    options.add_argument(
        "--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu", help="where"
    )
    return options


def _invert(catalog: Catalog, options: argparse.Namespace) -> None:
    if options.num_pictures < 1:
        raise ValueError(f"--num-pictures must be at least 1, got {options.num_pictures}")
    built = build(read(catalog, options.config), ("backbone", "data", "sampler"))
    pictures = held_out(built["data"], options.num_pictures)
    tries = [_settings(built.get("sampler"), num_steps, options.guidance) for num_steps in options.steps]
    model = Model(built["backbone"], options.device)
    for inversion in tries:
        inversion.grid(model.backbone.schedule)  # refuses at once what it would refuse after minutes
    rows = []
    first = tries[0]
    start = "noised" if first.noised_start else "clean"
    print(
        f"{len(pictures.prompts)} held-out pictures, guidance {first.guidance:g}, {first.spacing} spacing, "
        f"{start} start\n{'steps':>5}  {'round trip':>10}  {'spread':>6}  {'mean':>6}  {'seconds':>7}"
    )
    for inversion in tries:
        rows.append(model.measure(inversion, pictures))
        print(rows[-1].told(), flush=True)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        report = {
            "config": options.config,
            "pictures": len(pictures.prompts),
            "guidance": first.guidance,
            "spacing": first.spacing,
            "noised_start": first.noised_start,
            "rows": [row._asdict() for row in rows],
        }
        (options.out / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        model.sheet(tries[-1], pictures).save(options.out / SHEET)
        print(f"{REPORT} and {SHEET} are in {options.out}")


def held_out(data: AlignData, count: int) -> Pictures:
    """The first different pictures of the held-out pairs.

    Raises:
        ValueError: the config has none.
    """
    if data.validation is None:
        raise ValueError("alignkit invert: the config has no held-out pairs; give it data.validation")
    pairs = PairDataset(data.validation, data.resolution)
    found: dict[tuple[bytes, str], Tensor] = {}
    for index in range(len(pairs)):
        example = pairs[index, 0]
        for image_CHW in example.image_KCHW:
            found.setdefault((image_CHW.numpy().tobytes(), example.prompt), image_CHW)
        if len(found) >= count:
            break
    chosen = list(found.items())[:count]
    return Pictures(torch.stack([image_CHW for _, image_CHW in chosen]), tuple(key[1] for key, _ in chosen))


def _settings(sampler: Any, num_steps: int, guidance: float | None) -> Inversion:
    """How to invert: as the config's sampler does if it is one of ours, with other steps."""
    if isinstance(sampler, DDIMInversion | DDIMInversionDeviation):
        own = sampler.inversion
        guidance = own.guidance if guidance is None else guidance
        return Inversion("alignkit invert", num_steps, guidance, own.spacing, own.noised_start)
    return Inversion("alignkit invert", num_steps, 1.0 if guidance is None else guidance)


class Model:
    """The network that a config starts from, to invert with.

    Args:
        backbone: the model.
        device: where it runs.
    """

    def __init__(self, backbone: Backbone, device: str) -> None:
        self.backbone, self.device = backbone, torch.device(device)
        self._network: nn.Module = backbone.build_policy().eval().to(self.device)

    @torch.no_grad()
    def measure(self, inversion: Inversion, pictures: Pictures) -> Row:
        """Inverts pictures and samples back, from where the inversion began."""
        starts, ends, backs, seconds = [], [], [], 0.0
        chunks = range(0, len(pictures.prompts), BATCH_SIZE)
        shown = sys.stdout.isatty()
        for first in track(chunks, f"{inversion.num_steps} steps", disable=not shown, transient=True):
            part = pictures.part(first, BATCH_SIZE)
            encoded, denoiser = self.bound(part)
            began = time.perf_counter()
            path_PKBCHW = inversion.invert(inversion.clean(encoded), part.prompts, denoiser)
            end_KBCHW = path_PKBCHW[-1].cpu()
            seconds += time.perf_counter() - began
            grid = inversion.grid(self.backbone.schedule)
            start_KBCHW = path_PKBCHW[0] if inversion.noised_start else inversion.clean(encoded)
            noise = noise_estimate(denoiser, inversion.guidance)
            back_KBCHW = sample(noise, path_PKBCHW[-1], grid[1:] if inversion.noised_start else grid)
            starts.append(start_KBCHW.cpu())
            ends.append(end_KBCHW)
            backs.append(back_KBCHW.cpu())
        error = round_trip_error(torch.cat(starts, 1), torch.cat(backs, 1))
        end_KNCHW = torch.cat(ends, 1)
        spread, mean = float(end_KNCHW.std()), float(end_KNCHW.mean())
        return Row(inversion.num_steps, float(error), spread, mean, round(seconds, 2))

    @torch.no_grad()
    def sheet(self, inversion: Inversion, pictures: Pictures) -> Image.Image:
        """Pictures, what comes back of them, and what their noise gives under another's prompt."""
        shown = pictures.part(0, COLUMNS)
        distinct = list(dict.fromkeys(shown.prompts))
        others = tuple(distinct[distinct.index(prompt) - 1] for prompt in shown.prompts)
        grid = inversion.grid(self.backbone.schedule)
        encoded, denoiser = self.bound(shown)
        end_KBCHW = inversion.invert(inversion.clean(encoded), shown.prompts, denoiser)[-1]
        rows = [to_pictures(shown.image_NCHW / 2 + 0.5)]
        for prompts in (shown.prompts, others):
            _, denoiser = self.bound(shown._replace(prompts=prompts))
            back_KBCHW = sample(noise_estimate(denoiser, inversion.guidance), end_KBCHW, grid)
            rows.append(to_pictures(self.backbone.decode(back_KBCHW[0])))
        return contact_sheet(rows, ["picture", "inverted and back", "under another prompt"], shown.prompts)

    def bound(self, pictures: Pictures) -> tuple[Encoded, BoundDenoiser]:
        """Pictures as the network sees them, and the network told what they show."""
        moments = self.backbone.encode_images(pictures.image_NCHW.to(self.device))
        text_BLD, extras = self.backbone.encode_prompts(pictures.prompts, self.device)
        clean_KBCHW = moments.mean_NCHW[None]
        encoded = Encoded(clean_KBCHW, text_BLD, extras, clean_KBCHW, pictures.prompts)
        return encoded, BoundDenoiser(self.backbone, self._network, encoded)
