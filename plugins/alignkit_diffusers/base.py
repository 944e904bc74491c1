"""The base model of an export: all of its pipeline but the trained network."""

import shutil
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from rich.progress import track

from alignkit_diffusers.loading import PICKLES, PipelineFolder, SingleFile, Store
from alignkit_diffusers.pipeline import PipelineBackbone


def folder_of(store: Store) -> PipelineFolder:
    """The pipeline folder that a base is, or that is beside its single file."""
    if isinstance(store, SingleFile):
        return store.beside
    assert isinstance(store, PipelineFolder)
    return store


def copy_parts(store: PipelineFolder, folder: Path, *, without: str) -> None:
    """Copies a pipeline's files as they are, but for pickles and one part."""
    base = Path(store.root)
    if not base.is_dir():  # a hub id, whose files are in the cache
        revision = store.commit or store.revision
        base = Path(DiffusionPipeline.download(store.root, revision=revision, use_safetensors=True))
    parts = [
        name for name, kind in store.index.items() if isinstance(kind, list) and kind[0] and name != without
    ]
    files = [base / "model_index.json"]
    files += [path for name in parts for path in sorted((base / name).rglob("*")) if path.is_file()]
    for path in track(files, "copying", transient=True, disable=not sys.stdout.isatty()):
        if path.suffix in PICKLES:
            continue
        target = folder / path.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)  # what a cache's link points to, not the link


def assembled(backbone: PipelineBackbone, network: Any, dtype: torch.dtype) -> Any:
    """A pipeline of diffusers around a network, of a base that is no folder to be copied."""
    store = backbone.store
    index, networks = store.index, {"vae": AutoencoderKL, **backbone.encoders}
    parts: dict[str, Any] = {
        part: store.network(kind, part).to(dtype) if (index.get(part) or [None])[0] else None
        for part, kind in networks.items()
    }
    parts |= {
        part: store.plain(kind, part) if (index.get(part) or [None])[0] else None
        for part, kind in backbone.tokenizers.items()
    }
    scheduler = store.plain(getattr(diffusers, index["scheduler"][1]), "scheduler")
    return backbone.pipeline(
        **parts, scheduler=scheduler, **{backbone.network_part: network}, **backbone.extra_parts()
    )


def base_code(backbone: PipelineBackbone, *parts: str) -> str:
    """The line that loads the base with diffusers, with other parts in place of its own."""
    store, kind = backbone.store, backbone.pipeline.__name__
    if isinstance(store, SingleFile):
        arguments = [f'"{store.file}"', f'config="{store.beside.root}"']
        return f"pipeline = {kind}.from_single_file({', '.join([*arguments, *parts])})\n"
    folder = folder_of(store)
    named = {"revision": folder.revision, "variant": folder.variant}
    arguments = [f'"{folder.root}"', *(f'{name}="{value}"' for name, value in named.items() if value)]
    return f"pipeline = {kind}.from_pretrained({', '.join([*arguments, *parts])})\n"
