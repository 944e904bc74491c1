"""The model card beside exported weights: what they are, of what, by what, how well, and how to load them."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from alignkit import Paper, __version__
from alignkit.evaluation.statistics.bootstrap import Interval

LIBRARIES = ("torch", "lightning", "diffusers", "transformers", "peft", "safetensors")


class Card(NamedTuple):
    """What a card says.

    Args:
        title: name of the run.
        format: name of the format.
        command: how the weights were exported.
        base: the base model as the run's config names it.
        hub_base: whether that is a hub id.
        fingerprint: SHA-256 of the base network's weights, float32.
        origin: where in the run the weights come from.
        dtype: of the weights.
        adapted: whether adapters were trained.
        solver: the sampling method of the run's own pictures.
        config: the run's config, as text.
        parsed: the same, read.
        papers: those of its components.
        summary: the run's summary; empty if it is not about these weights.
        hashes: SHA-256 of the written files of weights, by name.
        example: code that loads them.
    """

    title: str
    format: str
    command: str
    base: str
    hub_base: bool
    fingerprint: str
    origin: str
    dtype: str
    adapted: bool
    solver: str
    config: str
    parsed: Mapping[str, Any]
    papers: Sequence[Paper]
    summary: Mapping[str, Any]
    hashes: Mapping[str, str]
    example: str


def written(card: Card) -> str:
    """The card, in Markdown with the header that the hub reads."""
    parts = [
        _header(card),
        f"# {card.title}",
        _about(card),
        f"## Use\n\n```python\n{card.example}```",
        _metrics(card.summary, card.solver),
        _data(card),
        _files(card),
        "## Licence\n\nsame as the base model: check",
        "## Config\n\n<details><summary>the run's config.yaml</summary>\n",
        f"```yaml\n{card.config}```\n\n</details>",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(card: Card) -> str:
    tags = ["alignkit", "diffusers", "text-to-image", *(["lora"] if card.adapted else [])]
    lines = ["---", "library_name: diffusers", "pipeline_tag: text-to-image"]
    if card.hub_base:
        relation = "adapter" if card.format in ("lora", "kohya", "comfyui") else "finetune"
        lines += [f"base_model: {card.base}", f"base_model_relation: {relation}"]
    lines += ["license: other", "license_name: same-as-the-base-model-check", "tags:"]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags), "---"])


def _about(card: Card) -> str:
    how = "low-rank adapters" if card.adapted else "all weights of the network"
    steps = f", {card.summary['steps']} optimizer steps" if "steps" in card.summary else ""
    names = [_name(card.parsed, part) for part in ("objective", "sampler", "weighting")]
    lines = [
        f"Aligned to human preferences with alignkit {__version__}: {how} trained with "
        f"{', '.join(name for name in names if name)}{steps}.",
        "",
        f"- Base model: `{card.base}`; SHA-256 of its network's weights in float32 `{card.fingerprint}`",
        f"- Weights: {card.origin}; {card.dtype}; format {card.format}",
        f"- Exported with `{card.command}`",
    ]
    lines += [f"- Method: [{p.title}]({p.url}) ({p.authors}, {p.year})" for p in card.papers]
    return "\n".join(lines)


def _metrics(summary: Mapping[str, Any], solver: str) -> str:
    if not summary:
        return "## Metrics\n\nNot measured for these weights: the run's own figures are those of its end."
    lines = ["## Metrics", ""]
    if summary.get("scores"):
        count = f"{len(summary['prompts'])} held-out prompts, {summary['images_per_prompt']} pictures of each"
        lines += [
            f"Base against aligned on {count}; {solver}, {summary['num_steps']} steps, guidance "
            f"{summary['guidance']:g}; mean [95 % interval over prompts].",
            "",
            "| judge | base | aligned | difference | wins |",
            "|---|---|---|---|---|",
        ]
        for judge, scores in summary["scores"].items():
            # displacement is the aligned model's alone
            parts = ("base", "aligned", "difference", "win_rate")
            cells = [_interval(scores[part]) if part in scores else "" for part in parts]
            lines.append(f"| {judge} | {' | '.join(cells)} |")
        lines.append("")
    if summary.get("held_out"):
        lines += ["On held-out pairs:", "", "| figure | value |", "|---|---|"]
        lines += [f"| {name} | {value:g} |" for name, value in summary["held_out"].items()]
    return "\n".join(lines).rstrip()


def _interval(figures: Mapping[str, float]) -> str:
    interval = Interval(**figures)
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _data(card: Card) -> str:
    data = card.parsed["data"]
    lines = ["## Data", ""]
    for part in ("train", "validation"):
        if data.get(part):
            settings = ", ".join(f"{k} {v}" for k, v in (data[part].get("init_args") or {}).items())
            lines.append(f"- {part}: {_name(data, part)}{f' ({settings})' if settings else ''}")
    lines += [f"- {name}: {value}" for name, value in (card.summary.get("data") or {}).items()]
    lines.append(f"- resolution: {data['resolution']}")
    return "\n".join(lines)


def _files(card: Card) -> str:
    lines = ["## Files", "", "| file | SHA-256 |", "|---|---|"]
    lines += [f"| `{name}` | `{digest}` |" for name, digest in card.hashes.items()]
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return "\n".join(
        [*lines, "", f"Written by alignkit {__version__}, Python {platform.python_version()}, {versions}."]
    )


def _name(config: Mapping[str, Any], part: str) -> str:
    """The class that a config names."""
    return str((config.get(part) or {}).get("class_path", "")).rpartition(".")[2]
