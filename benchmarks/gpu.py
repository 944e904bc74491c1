"""Steps of SD 1.5 and SDXL on a GPU: alignkit's against the matmul ceiling, the floor and published scripts.

    python benchmarks/gpu.py --out benchmarks/results   # one CUDA GPU, 9 minutes, what is most wanted first
    python benchmarks/gpu.py --only SDXL compiled       # rows whose names have all of these words
    python benchmarks/gpu.py --tiny                     # the same code on a CPU and tiny shapes: no figures
    python benchmarks/gpu.py --not-yet-run --out benchmarks/results

Nothing is downloaded: networks have their real shapes and random weights. alignkit is `alignkit fit` on
cached latents with all its callbacks; the floor is a bare loop of the same forwards, backward, clipping and
fused AdamW on prepared inputs, compiled alike; the scripts' loop decodes pictures and encodes them and
prompts at every step, reads five numbers of each, and recomputes SDXL's activations and LoRA's, as they do.
In its favour it moves no network between GPU and host, and has AdamW for SDXL, too. Each contestant is a
process of its own.

The promises, of full training in bf16-mixed with 16 pairs of SD 1.5 at 512 x 512, and with 4 of SDXL at
1024 x 1024: 40 % of what a matrix product of 8192 x 8192 reaches in the same call, at most 1.03 times the
floor, no wait for the GPU in a step that logs nothing, 3 times the scripts' loop as it is launched (128
micro-steps of a pair for an update) and 1.3 times it with as many pairs.
"""

import os

# asked in this way, the driver is not started in this process, which is forked
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import argparse
import multiprocessing
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import yaml
from report import NOT_YET, Promise, header, keep, write

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from bare import BETA, CLIP, EPS, LR, Loop, Setting, run_floor, run_peer
from gauge import Clock, Gauge, Measured, Plan
from ours import pace
from shapes import FULL, LORA, SD15, SDXL, TINY, Shape, write_shape
from stack import network, stack_in

from alignkit.cli import main as alignkit
from alignkit.compiling import Compile
from alignkit_diffusers.loading import PipelineFolder

EAGER, COMPILED, GRAPHS = HOW = ("eager", "compiled", "CUDA graphs")
ALIGNKIT, FLOOR, SCRIPTS, LAUNCHED = "alignkit", "floor", "scripts' loop", "scripts' loop, as launched"
# of the scripts' launchers; and as it is run here, where a step with an update is told from one without
ACCUMULATED, HERE = 128, 8
PAIRS = 2048
# seconds for the ceiling, which is measured whatever the time
FIRST = 60.0
TITLE = "Steps on a GPU"
COMMAND = "python benchmarks/gpu.py --out benchmarks/results"
LEFT_OUT, NO_TIME = "left out", "left out: no time"


class Row(NamedTuple):
    """One measurement."""

    shape: Shape
    trains: str
    how: str
    batch: int
    who: str

    @property
    def case(self) -> str:
        """What it has in common with other contestants."""
        return f"{self.shape.name}, {self.trains}, {self.how}, {_pairs(self.batch)}"

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.case}: {self.who}"


class Bench(NamedTuple):
    """How all of it is run.

    Args:
        shapes: which models.
        plan: how each contestant is measured.
        compile: how what is not eager is compiled.
        pairs: how many there are.
        workers: processes that read.
        here: micro-steps of an update, of the scripts' loop as launched.
        side: of the matrices of the ceiling.
        copied: bytes of its copy.
    """

    shapes: tuple[Shape, ...]
    plan: Plan
    compile: Mapping[str, Compile]
    pairs: int
    workers: int
    here: int
    side: int
    copied: int


class CommandError(Exception):
    """A command of alignkit failed."""


class Ceiling(NamedTuple):
    """What the device does at most, and which one it is."""

    device: str
    tflops: float
    copied: float


Found = dict[str, Measured | str]


def rows(shapes: Sequence[Shape]) -> list[Row]:
    """All that is measured, what is most wanted first."""
    cases = [
        Row(shape, trains, how, batch, "")
        for shape in shapes
        for trains in (FULL, LORA)
        for how in HOW
        for batch in shape.batches
    ]
    cases.sort(
        key=lambda row: (
            row.how == GRAPHS,
            row.batch != row.shape.wanted,
            row.trains != FULL,
            HOW.index(row.how),
            -row.batch,
        )
    )
    return [row._replace(who=who) for row in cases for who in contestants(row)]


def contestants(row: Row) -> list[str]:
    """Who runs in a case: published scripts compile nothing, and one of their micro-steps has one pair."""
    named = [ALIGNKIT, FLOOR]
    if row.how == EAGER:
        named.append(SCRIPTS)
        if row.trains == FULL and row.batch == row.shape.wanted:
            named.append(LAUNCHED)
    return named


def prepare(bench: Bench, folder: Path, shape: Shape) -> None:
    """Writes a model without weights, pairs, and a cache of their latents."""
    write_shape(shape, folder, bench.pairs)
    path = config(bench, folder, Row(shape, FULL, EAGER, 1, ALIGNKIT))
    random_weights(bench.plan.device)
    told(["cache", "--config", str(path), "--out", str(folder / "latents"), "--batch-size", "4"])


def measure(bench: Bench, folder: Path, row: Row, done: Callable[[Any], NoReturn]) -> None:
    """Runs a contestant until it is measured.

    Args:
        bench: how.
        folder: of its model, prepared.
        row: which.
        done: told what was measured.
    """
    gauge = Gauge(bench.plan, done)
    if row.who == ALIGNKIT:
        random_weights(bench.plan.device)
        # a checkpoint of what runs out of memory, and its way back to the host, take longer than the row
        pace(gauge, lambda error: done(_why(error)))
        told(["fit", "--config", str(config(bench, folder, row)), "--run", str(folder / "run" / row.name)])
        raise RuntimeError("alignkit fit ended before it was measured")
    is_floor, launched = row.who == FLOOR, row.who == LAUNCHED
    setting = Setting(
        device=bench.plan.device,
        dtype=torch.bfloat16,
        batch_size=1 if launched else row.batch,
        resolution=row.shape.resolution,
        workers=bench.workers,
        lora=row.trains == LORA,
        checkpointed=not is_floor and (row.shape.checkpointed or row.trains == LORA),
        halved=not is_floor,
        compile=bench.compile.get(row.how),
        accumulated=bench.here if launched else 1,
        prepared=2,
    )
    (run_floor if is_floor else run_peer)(Loop(folder, setting), gauge)


def config(bench: Bench, folder: Path, row: Row) -> Path:
    """Writes what alignkit is told."""
    stack, is_cuda = stack_in(folder), bench.plan.device.type == "cuda"
    backbone = {"name": row.shape.backbone, "path": str(stack.pipeline), "frozen_dtype": "bfloat16"}
    if row.trains == LORA:
        backbone["lora"] = {"rank": 8}
    cache = folder / "latents"
    content = {
        "objective": {"name": "DiffusionDPO", "beta": BETA},
        "sampler": "SharedNoise",
        "backbone": backbone,
        "optimizer": {"name": "AdamW", "lr": LR, "eps": EPS, "fused": True},
        "data": {
            "train": {"name": "JSONLines", "path": str(stack.pairs)},
            "batch_size": row.batch,
            "resolution": row.shape.resolution,
            "num_workers": bench.workers,
            **({"cache": str(cache)} if cache.exists() else {}),
        },
        "samples": {"num_prompts": 0},
        "trainer": {
            "accelerator": "gpu" if is_cuda else "cpu",
            "devices": 1,
            "max_steps": 10_000,
            "precision": "bf16-mixed",
            "gradient_clip_val": CLIP,
        },
    }
    if row.how in bench.compile:
        content["model"] = {"compile": asdict(bench.compile[row.how])}
    path = folder / f"{row.name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def random_weights(device: torch.device) -> None:
    """Has alignkit make its networks with random weights, on the device, in place of reading them."""

    def made(store: PipelineFolder, kind: Any, part: str) -> Any:
        return network(kind, Path(store.root), part, device)

    PipelineFolder.network = made  # type: ignore[method-assign]


def told(arguments: list[str]) -> None:
    """Runs a command of alignkit.

    Raises:
        CommandError: it failed, and said why.
    """
    if code := alignkit(arguments):
        raise CommandError(f"alignkit {arguments[0]} ended with {code}")


def ceiling(bench: Bench) -> Ceiling:
    """Measures the device: a matrix product of random numbers in bfloat16, and a copy."""
    device, side = bench.plan.device, bench.side
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    seconds = _least(device, lambda: torch.mm(a, b, out=product))
    source = torch.empty(bench.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_seconds = _least(device, lambda: target.copy_(source))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return Ceiling(name, 2 * side**3 / seconds / 1e12, 2 * bench.copied / copy_seconds / 1e12)


def _least(device: torch.device, run: Callable[[], Any]) -> float:
    """Median of the seconds that something takes."""
    for _ in range(5):
        run()
    clock = Clock(device)
    clock.mark()
    for _ in range(30):
        run()
        clock.mark()
    times = sorted(clock.milliseconds())
    return times[len(times) // 2] / 1e3


def in_process(context: Any, log: Path, seconds: float, run: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, or sends, in a process of its own; in words why it does not.

    Args:
        context: how the process is started.
        log: file of what it prints.
        seconds: after which it is ended.
        run: the function.
        *arguments: of it.
    """
    if seconds <= 0:
        return NO_TIME
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, log, run, *arguments))
    process.start()
    theirs.close()
    result: Any = NO_TIME
    try:
        if ours.poll(seconds):
            result = ours.recv()
    except EOFError:
        result = "failed: the process ended"
    with suppress(ProcessLookupError):  # it leads a group: those that it started read, or compile
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    ours.close()
    return result


def _child(connection: Connection, log: Path, run: Callable[..., Any], *arguments: Any) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)

    def done(result: Any) -> NoReturn:
        connection.send(result)
        os._exit(0)

    try:
        done(run(*arguments, done) if run is measure else run(*arguments))
    except BaseException as error:
        sys.stderr.flush()
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        traceback.print_exc()
        why = _why(error)
        done(f"{why}: {lines[-1][:200]}" if isinstance(error, CommandError) and lines else why)


def _why(error: BaseException) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def run_all(
    bench: Bench, wanted: Sequence[Row], folder: Path, until: float, tell: Callable[..., None]
) -> None:
    """Measures row after row until the time is over; tells after each what there is.

    Args:
        bench: how.
        wanted: which.
        folder: to work in.
        until: when that is, by ``time.monotonic``.
        tell: told the ceiling and what was found.

    Raises:
        RuntimeError: the device does not work.
    """
    context = multiprocessing.get_context("fork")
    best = in_process(context, folder / "ceiling.log", FIRST, ceiling, bench)
    if isinstance(best, str):  # something has started the driver in this process: fork no more
        context = multiprocessing.get_context("spawn")
        best = in_process(context, folder / "ceiling.log", FIRST, ceiling, bench)
    if isinstance(best, str):
        raise RuntimeError(f"{best}\n{(folder / 'ceiling.log').read_text()}")
    found: Found = {}
    prepared: dict[str, str | None] = {}
    for row in wanted:
        place = folder / row.shape.folder
        if row.shape.name not in prepared:
            log = folder / f"{row.shape.folder}.log"
            why = in_process(context, log, until - time.monotonic(), prepare, bench, place, row.shape)
            prepared[row.shape.name] = why
        why, left = prepared[row.shape.name], until - time.monotonic()
        began = time.monotonic()
        found[row.name] = why or in_process(context, folder / "row.log", left, measure, bench, place, row)
        said = found[row.name]
        shown = (
            said
            if isinstance(said, str)
            else f"{said.milliseconds[0]:.1f} ms, {len(said.milliseconds)} steps"
        )
        print(f"{row.name}: {shown} ({time.monotonic() - began:.0f} s)", flush=True)
        tell(best, found)


def table(bench: Bench, best: Ceiling | None, found: Found) -> list[str]:
    """What was found; of what was not, why."""
    promised = [f"| {promise.cells} |" for promise in promises(bench, best, found)]
    lines = ["| | promised | found | kept |", "|---|---|---|---|", *promised, ""]
    return [*lines, *figures(bench, best, found), "", *besides(bench, found)]


def figures(bench: Bench, best: Ceiling | None, found: Found) -> list[str]:
    """A line for each case."""
    lines = [
        "| | ms a step | pairs/s | TFLOP/s | of the ceiling | against the floor | times the scripts' loop "
        "| times it as launched | GiB | waits |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    cases = {row.case: row for row in rows(bench.shapes)}
    for case in sorted(cases, key=lambda name: _place(bench, cases[name])):
        row = cases[case]
        ours = found.get(f"{case}: {ALIGNKIT}", NOT_YET)
        if isinstance(ours, str):
            cells = [ours, *[""] * 8]
        else:
            step = ours.each(1, 1)
            reached = _tflops(row, ours)
            cells = [
                f"{step:.1f}",
                f"{1e3 * row.batch / step:.4g}",
                "" if reached is None else f"{reached:.0f}",
                "" if reached is None or best is None else f"{reached / best.tflops:.0%}",
                _ratio(over_floor(found, row)),
                _ratio(over_scripts(found, row, SCRIPTS)),
                _ratio(over_scripts(found, row, LAUNCHED, bench.here)),
                f"{ours.gib:.1f}",
                str(sum(ours.waits.values())),
            ]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return lines


def promises(bench: Bench, best: Ceiling | None, found: Found) -> list[Promise]:
    """What is promised, and what was found of the fastest one of eager, compiled and with CUDA graphs."""
    promised = []
    for shape in bench.shapes:
        named = [row for row in rows((shape,)) if row.trains == FULL and row.batch == shape.wanted]
        ours = [(row, value) for row in named if not isinstance(value := found.get(row.name, ""), str)]
        ours = [(row, value) for row, value in ours if row.who == ALIGNKIT]
        row, measured = min(ours, key=lambda one: one[1].each(1, 1), default=(named[0], None))
        reached = None if measured is None else _tflops(row, measured)
        share = reached and best and reached / best.tflops
        waited = measured and float(sum(measured.waits.values()))
        launched = over_scripts(found, row, LAUNCHED, bench.here)
        which = f"{shape.name}, {FULL}, {_pairs(shape.wanted)}"
        promised += [
            Promise(f"{which}: share of the matmul ceiling", least=0.4, found=share, told=row.how),
            Promise(
                f"{which}: time against the floor", most=1.03, found=over_floor(found, row), told=row.how
            ),
            Promise(f"{which}: waits for the GPU in a step", most=0.0, found=waited, told=row.how),
            Promise(f"{which}: times the scripts' loop as launched", least=3, found=launched, told=row.how),
            Promise(
                f"{which}: times it with as many pairs",
                least=1.3,
                found=over_scripts(found, row, SCRIPTS),
                told=row.how,
            ),
        ]
    return promised


def besides(bench: Bench, found: Found) -> list[str]:
    """The other contestants, as far as they were run, and where alignkit's steps wait."""
    lines, places = [], Counter[str]()
    for row in rows(bench.shapes):
        value = found.get(row.name, NOT_YET)
        if row.who == ALIGNKIT:
            places |= Counter() if isinstance(value, str) else Counter(value.waits)
        elif not isinstance(value, str):
            told = f"{value.gib:.1f} GiB, {sum(value.waits.values())} waits"
            lines.append(f"- {row.name}: {_step(row, value, bench.here):.1f} ms, {told}")
        elif value not in (NOT_YET, LEFT_OUT):
            lines.append(f"- {row.name}: {value}")
    if lines:
        lines = ["Contestants beside alignkit, a step of as many pairs:", "", *lines, ""]
    if places:
        lines += ["Where the host waits in a step of alignkit that logs nothing, and how often at most:", ""]
    return [*lines, *(f"- {place}: {count}" for place, count in sorted(places.items()))]


def over_floor(found: Found, row: Row) -> float | None:
    """Time of a step against the floor's."""
    ours, floor = (found.get(f"{row.case}: {who}", "") for who in (ALIGNKIT, FLOOR))
    if isinstance(ours, str) or isinstance(floor, str):
        return None
    return ours.each(1, 1) / floor.each(1, 1)


def over_scripts(found: Found, row: Row, who: str, here: int = 1) -> float | None:
    """Pairs a second against the scripts' loop, which is never compiled."""
    case = row._replace(how=EAGER, batch=row.shape.wanted if who == LAUNCHED else row.batch).case
    ours, theirs = found.get(f"{row.case}: {ALIGNKIT}", ""), found.get(f"{case}: {who}", "")
    if isinstance(ours, str) or isinstance(theirs, str):
        return None
    batch = 1 if who == LAUNCHED else row.batch
    return (theirs.each(ACCUMULATED, here) / batch) / (ours.each(1, 1) / row.batch)


def _step(row: Row, value: Measured, here: int) -> float:
    return row.batch * value.each(ACCUMULATED, here) if row.who == LAUNCHED else value.each(1, 1)


def _tflops(row: Row, value: Measured) -> float | None:
    """Of the model, TFLOP/s: what no exact step leaves out."""
    if row.shape.tflop is None:
        return None
    return row.shape.tflop[row.trains] * row.batch / (value.each(1, 1) / 1e3)


def _pairs(count: int) -> str:
    return f"{count} pair{'s' * (count > 1)}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _place(bench: Bench, row: Row) -> tuple[Any, ...]:
    shapes = [shape.name for shape in bench.shapes]
    return shapes.index(row.shape.name), row.trains != FULL, HOW.index(row.how), row.batch


def not_yet_run(bench: Bench) -> list[str]:
    """The page where no GPU has run it."""
    said = f"{NOT_YET.capitalize()}: `{COMMAND}` on a machine with a CUDA GPU, in 9 minutes or less."
    return [f"# {TITLE}", "", said, "", *table(bench, None, {})]


def real(device: torch.device) -> Bench:
    """The models as they are."""
    workers = min(8, (os.cpu_count() or 1) // 2)
    compiled = {COMPILED: Compile(), GRAPHS: Compile(mode="reduce-overhead")}
    return Bench((SD15, SDXL), Plan(device), compiled, PAIRS, workers, HERE, side=8192, copied=4 * 2**30)


def tiny() -> Bench:
    """Tiny ones, on a CPU."""
    plan = Plan(torch.device("cpu"), warm_up=1, steps=4, least=4)
    compiled = {COMPILED: Compile("eager"), GRAPHS: Compile("eager")}
    return Bench(TINY, plan, compiled, 8, workers=0, here=2, side=64, copied=2**16)


def main() -> None:
    """Measures what there is time for, and writes the table after each row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the table; it is only printed without it")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="what has not begun by then is left out (9)"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="rows whose names have all of these"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--not-yet-run", action="store_true", help="write the table without figures")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    if options.not_yet_run:
        lines = not_yet_run(real(torch.device("cpu")))
        if options.out:
            write(lines, options.out, "gpu", dated=False)
            keep(promises(real(torch.device("cpu")), None, {}), options.out, "gpu")
        print("\n".join(lines))
        return
    if not options.tiny and not torch.cuda.is_available():
        parser.error("no CUDA GPU is there; --tiny runs the same code on the CPU")
    bench = tiny() if options.tiny else real(torch.device("cuda"))
    wanted = [
        row for row in rows(bench.shapes) if all(word.lower() in row.name.lower() for word in options.only)
    ]
    if not wanted:
        parser.error(f"--only {' '.join(options.only)}: no row is called so")
    lines: list[str] = []

    def tell(best: Ceiling, found: Found) -> None:
        late = {row.name: LEFT_OUT for row in rows(bench.shapes)}
        said = (
            f"Ceiling in the same call: {best.tflops:.4g} TFLOP/s (bfloat16, {bench.side} x {bench.side} x "
            f"{bench.side}, random numbers), copies at {best.copied:.3g} TB/s."
        )
        if options.tiny:
            said = f"Tiny shapes on a CPU: these figures say nothing of a GPU. {said}"
        lines[:] = [*header(TITLE, said, hardware=best.device), *table(bench, best, {**late, **found})]
        if options.out:
            write(lines, options.out, "gpu", where=best.device)
            if not options.tiny:
                keep(promises(bench, best, {**late, **found}), options.out, "gpu", best.device)

    with tempfile.TemporaryDirectory() as name:
        run_all(bench, wanted, Path(name), until, tell)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
