"""The benchmark of a GPU: its code on tiny shapes and a CPU, and what is said where no GPU has run it."""

import importlib
import multiprocessing
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from alignkit.policy import LoRA
from alignkit_diffusers.adapters import add_adapters
from tests.runs import ROOT, environment

SCRIPT = ROOT / "benchmarks" / "gpu.py"
# where a step that logs nothing reads a tensor on the host, known and not yet gone: the prompts to drop, in
# ``Backbone.encode``; and Lightning, which makes numbers of all that is logged for the progress bar
KNOWN = {"alignkit/components.py", "connectors/logger_connector/logger_connector.py"}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "peers"))
    return importlib.import_module("gpu")


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cells(table: str, name: str) -> list[str]:
    """What the table says of a case."""
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_it_measures_full_training_of_both_models_on_tiny_shapes(tmp_path: Path) -> None:
    """Every contestant is run, compared and written down, and no row but those asked for."""
    said = run("--tiny", "--only", "full", "eager", "2 pairs", "--out", str(tmp_path))
    (page,) = tmp_path.glob("gpu_cpu_*.md")
    table = page.read_text()
    assert table in said
    assert "failed" not in table
    for model in ("SD 1.5", "SDXL"):
        step, pairs, _, _, floor, scripts, launched, *_ = cells(table, f"{model}, full, eager, 2 pairs")
        assert float(pairs) == pytest.approx(2e3 / float(step), rel=0.01)
        assert min(float(floor), float(scripts), float(launched)) > 0
        assert f"{model}, full, eager, 2 pairs: floor: " in table
        # the loop of published scripts reads five numbers of each step
        loops = re.findall(rf"- {model}, full, eager, 2 pairs: scripts' loop.*, (\d+) waits", table)
        assert loops == ["5", "5"]
        assert cells(table, f"{model}, LoRA, eager, 2 pairs")[0] == "left out"
    waits = re.findall(r"^- (\S+\.py):\d+: \d+$", table, flags=re.MULTILINE)
    assert set(waits) <= KNOWN


@pytest.mark.slow
@pytest.mark.parametrize("how", ["eager", "compiled", "CUDA graphs"])
def test_it_measures_adapters_and_compiled_networks_on_tiny_shapes(how: str) -> None:
    table = run("--tiny", "--only", "LoRA", *how.split(), "2 pairs")
    assert "failed" not in table
    for model in ("SD 1.5", "SDXL"):
        assert float(cells(table, f"{model}, LoRA, {how}, 2 pairs")[4]) > 0


def test_page_of_results_has_the_rows_of_the_script(bench: Any) -> None:
    """Where no GPU has run it, the page is what the script writes then, row for row."""
    page = (ROOT / "benchmarks" / "results" / "gpu.md").read_text()
    assert page.splitlines() == bench.not_yet_run(bench.real(torch.device("cpu")))
    for name in ("SD 1.5, full, eager, 32 pairs", "SDXL, LoRA, compiled, 8 pairs"):
        assert cells(page, name)[0] == "not yet run"


def test_what_is_promised_of_is_measured_first(bench: Any) -> None:
    rows = [row.name for row in bench.rows((bench.SD15, bench.SDXL))]
    first = [
        f"{model}, full, eager, {pairs} pairs: {who}"
        for model, pairs in (("SD 1.5", 16), ("SDXL", 4))
        for who in ("alignkit", "floor", "scripts' loop", "scripts' loop, as launched")
    ]
    assert rows[:8] == first
    # the scripts' loop is eager; what is compiled comes without it, CUDA graphs last
    assert len(rows) == len(set(rows)) == 2 + 7 * 2 * (6 + 4)
    assert [("CUDA graphs" in row) for row in rows] == [False] * 102 + [True] * 40


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("seconds", "function", "said"),
    [
        (60.0, "raise_out_of_memory", "out of memory"),
        (60.0, "raise_other", "failed: ValueError: no such thing"),
        (60.0, "refuse", "failed: CommandError: alignkit fit ended with 2: alignkit: no such key"),
        (60.0, "end", "failed: the process ended"),
        (1.0, "hang", "left out: no time"),
        (0.0, "raise_other", "left out: no time"),
        (60.0, "answer", 42),
    ],
)
def test_whatever_becomes_of_a_row_the_script_goes_on(
    bench: Any, tmp_path: Path, seconds: float, function: str, said: object
) -> None:
    context, arguments = multiprocessing.get_context("fork"), [bench] if function == "refuse" else []
    found = bench.in_process(context, tmp_path / "log", seconds, globals()[function], *arguments)
    assert found == said


def raise_out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def raise_other() -> None:
    raise ValueError("no such thing\nmore of it")


def refuse(bench: Any) -> None:
    print("alignkit: no such key", file=sys.__stderr__)
    raise bench.CommandError("alignkit fit ended with 2")


def end() -> None:
    os._exit(1)


def hang() -> None:
    time.sleep(600)


def answer() -> int:
    return 42


@pytest.mark.parametrize("name", ["SD15", "SDXL"])
def test_networks_have_the_numbers_of_weights_of_the_originals(bench: Any, name: str, tmp_path: Path) -> None:
    """859.5 and 2567.5 million; a UNet of another number is refused."""
    shape = getattr(bench, name)
    assert shape.weights == {"SD15": 859_520_964, "SDXL": 2_567_463_684}[name]
    bench.write_shape(shape, tmp_path / "right", pairs=1)
    with pytest.raises(ValueError, match=r"the UNet has \d+ weights in place of 1$"):
        bench.write_shape(shape._replace(weights=1), tmp_path / "wrong", pairs=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SD15", "SDXL"])
@pytest.mark.parametrize("trains", ["full", "LoRA"])
def test_tflop_of_a_pair_are_those_that_torch_counts(bench: Any, name: str, trains: str) -> None:
    """Policy forward and backward of winner and loser, and the reference's forward; on no device."""
    shape = getattr(bench, name)
    side = shape.resolution // 8
    with torch.device("meta"):
        unet = UNet2DConditionModel(**shape.unet)
        if trains == "LoRA":
            add_adapters(unet, LoRA())
        x_NCHW, t_N = torch.empty(2, 4, side, side), torch.empty(2, dtype=torch.int64)
        text_NLD = torch.empty(2, shape.tokens, shape.unet["cross_attention_dim"])
        pooled = {"text_embeds": torch.empty(2, 1280), "time_ids": torch.empty(2, 6)}
        told = {"added_cond_kwargs": pooled} if name == "SDXL" else {}
        with FlopCounterMode(display=False) as policy:
            unet(x_NCHW, t_N, text_NLD, **told).sample.sum().backward()
        if trains == "LoRA":
            unet.disable_adapters()
        with FlopCounterMode(display=False) as reference, torch.no_grad():
            unet(x_NCHW, t_N, text_NLD, **told)
    counted = (policy.get_total_flops() + reference.get_total_flops()) / 1e12
    assert counted == pytest.approx(shape.tflop[trains], rel=5e-4)


def test_a_micro_step_is_told_from_one_with_an_update(bench: Any) -> None:
    """Of updates every 2 micro-steps the second, fourth ... has one: 10 ms each, and 8 more for an update."""
    # the first is the second micro-step of the run
    measured = bench.Measured((18.0, 10.0, 18.0, 10.0), first=1, gib=0.0, waits={})
    assert measured.each(accumulated=128, here=2) == pytest.approx(10 + 8 / 128)
    assert measured.each(accumulated=1, here=1) == pytest.approx(14.0)


def test_waits_that_pytorch_warns_of_are_counted_by_place(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three warnings of its watch in one line of this file count three, and others none."""
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    waits = importlib.import_module("gauge").Waits(torch.device("cuda"))
    waits.start()
    for _ in range(3):
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)", stacklevel=1)
    warnings.warn("something else", stacklevel=1)
    waits.stop()
    ((place, count),) = waits.found.items()
    assert (place.rpartition(":")[0], count) == ("tests/benchmarks/test_gpu.py", 3)
    assert modes == ["warn", "default"]
    with pytest.warns(UserWarning, match="heard as before"):
        warnings.warn("heard as before", stacklevel=1)


def test_reads_of_values_are_counted_on_a_cpu(bench: Any) -> None:
    """A number, a list and a condition are three reads; what is computed on the device is none."""
    waits = importlib.import_module("gauge").Waits(torch.device("cpu"))
    waits.start()
    values = torch.arange(3.0)
    total = (values * 2).sum()
    assert total.item() == 6
    assert values.tolist() == [0, 1, 2]
    assert total > 5
    waits.stop()
    total.item()
    assert sum(waits.found.values()) == 3
