"""A plan as tables, and as JSON."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from alignkit.planning.command import Plan

GIB = 2**30


def size(number: float | None) -> str:
    """Bytes in words."""
    if number is None:
        return "unknown"
    for unit, scale in (("TiB", 2**40), ("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return f"{number:.0f} B"


def as_json(plan: Plan) -> dict[str, Any]:
    """All figures of a plan; bytes, seconds, numbers of weights."""
    run, memory = plan.run, plan.memory
    speed = plan.pairs_per_second
    return {
        "networks": {name: network._asdict() for name, network in memory.networks.items()},
        "memory": {
            "device": "gpu" if plan.on_gpu else "cpu",
            "parts": {**memory.parts, "activations and temporaries": memory.passing},
            "phases": memory.phases,
            "kept_for_backward": memory.kept,
            "peak": memory.peak,
        },
        "disk": plan.disk._asdict(),
        "run": {
            **run._asdict(),
            "effective_batch": run.effective_batch,
            "pairs_seen": run.seen,
            "epochs": run.epochs,
            "lr_per_pair": run.lr / run.effective_batch if run.lr else None,
        },
        "pairs_per_second": speed,
        "seconds": run.seconds(speed) if speed else None,
        "measured": plan.measured._asdict() if plan.measured else None,
        "notes": list(plan.notes),
        "batch": list(plan.batch),
    }


def show(plan: Plan) -> None:
    """Prints a plan."""
    console = Console(highlight=False)
    for table in (_networks(plan), _memory(plan), _disk(plan), _run(plan)):
        console.print(table)
        console.print()
    if plan.batch:
        console.print(f"the largest batch that fits: {' '.join(plan.batch)}", soft_wrap=True)
    for note in plan.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _networks(plan: Plan) -> Table:
    table = _table("networks", "parameters", "trained")
    for name, network in plan.memory.networks.items():
        table.add_row(name, f"{network.total:,}", f"{network.trained:,}")
    return table


def _memory(plan: Plan) -> Table:
    memory, device = plan.memory, "GPU" if plan.on_gpu else "CPU"
    table = _table(f"memory of tensors, one {device}", "size", "")
    for name, part in memory.parts.items():
        table.add_row(name, size(part), "")
    table.add_row("activations and temporaries", size(memory.passing), f"{size(memory.kept)} for backward")
    when = max(memory.phases, key=lambda phase: memory.phases[phase])
    table.add_row("peak", size(memory.peak), f"while: {when}", style="bold")
    phases = ", ".join(f"{name} {size(peak)}" for name, peak in memory.phases.items())
    table.caption = (
        f"by phase: {phases}. Not counted: the device's own context, and what its allocator wastes"
    )
    if plan.measured and plan.measured.peak is not None:
        table.add_row("measured peak", size(plan.measured.peak), plan.measured.device, style="bold")
    return table


def _disk(plan: Plan) -> Table:
    table = _table("disk", "size", "")
    table.add_row("a checkpoint", size(plan.disk.checkpoint), "weights that are trained, and the optimizer")
    table.add_row("cached latents", size(plan.disk.latents), "at most: shared pictures count once")
    each = f"float16, {size(plan.disk.prompt)} each"
    table.add_row("cached prompts", size(plan.disk.texts), each)
    return table


def _run(plan: Plan) -> Table:
    run, speed = plan.run, plan.pairs_per_second
    table = _table("run", "", "")
    made = f"devices {run.devices} x pairs {run.batch_size} x batches {run.accumulated}"
    if run.nodes > 1:
        made += f", on {run.nodes} nodes"
    table.add_row("effective batch", f"{run.effective_batch:,} pairs", made)
    table.add_row("optimizer steps", _count(run.steps), "")
    seen = "" if run.epochs is None else f"{run.epochs:.3g} epochs of {run.pairs:,}"
    table.add_row("pairs seen", _count(run.seen), seen)
    table.add_row("learning rate", "unknown" if run.lr is None else f"{run.lr:.4g}", run.schedule)
    if run.lr:
        table.add_row("per pair", f"{run.lr / run.effective_batch:.3g}", "learning rate / effective batch")
    seconds = run.seconds(speed) if speed else None
    if speed is None:
        table.add_row("time", "unknown", "give --pairs-per-second, or --measure")
    else:
        took = "unknown" if seconds is None else str(timedelta(seconds=round(seconds)))
        source = "measured on one device" if plan.measured else "as given"
        table.add_row("time", took, f"at {speed:.4g} pairs/s over all devices, {source}")
    return table


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, caption_justify="left")
    for number, header in enumerate(headers):
        table.add_column(header, justify="left" if number != 1 else "right")
    return table
