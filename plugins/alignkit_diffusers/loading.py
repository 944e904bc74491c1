"""Where the parts of a pipeline are read from: a folder or hub id, or a single file. Never a pickle."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import (
    create_diffusers_clip_model_from_ldm,
    create_diffusers_t5_model_from_checkpoint,
    is_clip_model_in_single_file,
    is_t5_in_single_file,
)
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.files import quick_hash
from alignkit.folders import located_folder
from alignkit.modelcode import refuse_code
from alignkit_diffusers.custom import refuse_custom
from alignkit_diffusers.identity import part_files

SAFETENSORS = ".safetensors"
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


class Store(ABC):
    """The parts of one pipeline.

    Args:
        owner: class that reads them, for messages.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner

    @property
    @abstractmethod
    def index(self) -> dict[str, Any]:
        """The pipeline's own description, ``model_index.json``."""

    @abstractmethod
    def config(self, kind: Any, part: str) -> dict[str, Any]:
        """What a part's config.json says, and its diffusers class where the file is silent."""

    @abstractmethod
    def plain(self, kind: Any, part: str) -> Any:
        """A part without weights: a tokenizer, a scheduler."""

    @abstractmethod
    def network(self, kind: Any, part: str) -> Any:
        """A part with weights, in float32."""

    @abstractmethod
    def outline(self, kind: Any, part: str) -> Any:
        """A part with weights as its config describes it, without reading them."""

    @abstractmethod
    def origins(self) -> dict[str, str]:
        """What a record says of where it comes from."""

    @abstractmethod
    def part_hash(self, part: str) -> str:
        """A quick hash of what a part is loaded from, without loading it."""


class PipelineFolder(Store):
    """A folder that diffusers' ``save_pretrained`` wrote, here or on the hub.

    Of a hub id all parts are of one commit, that of the index when it was first read.

    Args:
        owner: class that reads it, for messages.
        root: the folder, or a hub id.
        revision: a hub id's branch, tag or commit.
        variant: which of several files of the same weights, such as "fp16".

    Attributes:
        commit: what a hub id is read at; None of what is local, and before anything was read.
    """

    def __init__(
        self, owner: str, root: str, *, revision: str | None = None, variant: str | None = None
    ) -> None:
        super().__init__(owner)
        self.root, self.revision, self.variant = root, revision, variant
        self.commit: str | None = None

    @property
    def index(self) -> dict[str, Any]:
        index: dict[str, Any] = self._read(DiffusionPipeline.load_config, "model_index.json")
        refuse_custom(index, self.root, self.owner)
        if self.commit is None and not Path(self.root).exists():
            found = try_to_load_from_cache(self.root, "model_index.json", revision=self.revision)
            self.commit = Path(found).parent.name if isinstance(found, str) else None
        return index

    def config(self, kind: Any, part: str) -> dict[str, Any]:
        silent = {name: value.default for name, value in inspect.signature(kind).parameters.items()}
        return {**silent, **self._settings(kind, part)}

    def plain(self, kind: Any, part: str) -> Any:
        found = self._read(kind.from_pretrained, part, subfolder=part)
        # where there is no file transformers gives a tokenizer that knows its marks alone
        if isinstance(found, PreTrainedTokenizerBase) and len(found) - len(set(found.all_special_ids)) < 2:
            raise self._unreadable(part, "no vocabulary is there")
        return found

    def network(self, kind: Any, part: str) -> Any:
        self._settings(kind, part)
        return self._read(
            kind.from_pretrained,
            part,
            subfolder=part,
            variant=self.variant,
            use_safetensors=True,
            torch_dtype=torch.float32,
        )

    def outline(self, kind: Any, part: str) -> Any:
        settings = self._settings(kind, part)
        if issubclass(kind, PreTrainedModel):
            return kind(self._read(kind.config_class.from_pretrained, part, subfolder=part))
        return kind.from_config(settings)

    def origins(self) -> dict[str, str]:
        return {"base": self.root, **({"base commit": self.commit} if self.commit else {})}

    def part_hash(self, part: str) -> str:
        return quick_hash(self._read(part_files, part, subfolder=part, variant=self.variant))

    def _settings(self, kind: Any, part: str) -> dict[str, Any]:
        """A part's config.json."""
        if issubclass(kind, PreTrainedModel):
            settings, _ = self._read(kind.config_class.get_config_dict, part, subfolder=part)
        else:
            settings = self._read(kind.load_config, part, subfolder=part)
        refuse_code(settings, f"{self.root}/{part}", self.owner)
        return dict(settings)

    def _read(self, load: Callable[..., Any], part: str, **options: object) -> Any:
        try:
            return load(self.root, revision=self.commit or self.revision, **options)
        except (OSError, HfHubHTTPError, HFValidationError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise self._unreadable(part, reason) from error

    def _unreadable(self, part: str, reason: str) -> ValueError:
        told = f"{self.owner}: cannot load the {part} of {self.root!r}{self._which()}: {reason}"
        return ValueError(f"{told}\n{self._advice(part)}")

    def _which(self) -> str:
        named = [f"{name} {value}" for name, value in vars(self).items()
                 if name in ("revision", "variant") and value]  # fmt: skip
        return f" ({', '.join(named)})" if named else ""

    def _advice(self, part: str) -> str:
        files = [path.name for path in Path(self.root, part).glob("*")]
        weights = [name for name in files if name.endswith(SAFETENSORS)]
        if self.variant and weights:
            return f"There is {', '.join(sorted(weights)[:3])}; give another variant, or none"
        if not weights and any(name.endswith(PICKLES) for name in files):
            return (
                "Only safetensors files are read, never pickles, which run code when they are read: save it "
                "again with save_pretrained(..., safe_serialization=True)"
            )
        return "Give a folder that holds a whole pipeline, or a hub id that this machine can reach"


class SingleFile(Store):
    """A checkpoint of all weights in one safetensors file, in the layout that the models were published in.

    Args:
        owner: class that reads it, for messages.
        file: the file.
        beside: a pipeline of the same shape, which has what the file does not: settings, tokenizers, and
            text encoders where the file has none.
    """

    def __init__(self, owner: str, file: Path, beside: PipelineFolder) -> None:
        super().__init__(owner)
        self.file, self.beside = file, beside

    @property
    def index(self) -> dict[str, Any]:
        return self.beside.index

    def config(self, kind: Any, part: str) -> dict[str, Any]:
        return self.beside.config(kind, part)

    def plain(self, kind: Any, part: str) -> Any:
        return self.beside.plain(kind, part)

    def network(self, kind: Any, part: str) -> Any:
        read = self._text_encoder if issubclass(kind, PreTrainedModel) else self._denoiser
        try:
            network = read(kind, part)
        except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"{self.owner}: cannot load the {part} out of {str(self.file)!r}: {reason}\n"
                f"It must be a {kind.__name__} of the shape that config says, which is that of "
                f"{self.beside.root!r}"
            ) from error
        if missing := [name for name, weight in network.named_parameters() if weight.is_meta]:
            raise ValueError(
                f"{self.owner}: {str(self.file)!r} lacks {len(missing)} weights of the {part}, such as "
                f"{missing[0]}: it is no checkpoint of a pipeline of the shape of {self.beside.root!r}"
            )
        return network

    def outline(self, kind: Any, part: str) -> Any:
        return self.beside.outline(kind, part)

    def origins(self) -> dict[str, str]:
        beside = {name.replace("base", "settings"): told for name, told in self.beside.origins().items()}
        return {"base": str(self.file), **beside}

    def part_hash(self, part: str) -> str:
        # settings and tokenizers, and maybe the part itself, are those of the pipeline beside it
        return f"{quick_hash({self.file.suffix: self.file})} {self.beside.part_hash(part)}"

    def _denoiser(self, kind: Any, part: str) -> Any:
        # asked for a type, diffusers warns of an empty list
        return kind.from_single_file(str(self.file), config=self.beside.root, subfolder=part).float()

    def _text_encoder(self, kind: Any, part: str) -> nn.Module:
        weights = load_file(self.file)
        options = {
            "checkpoint": weights,
            "config": self.beside.root,
            "subfolder": part,
            "torch_dtype": torch.float32,
        }
        encoder: nn.Module
        if kind.__name__.startswith("CLIP") and is_clip_model_in_single_file(kind, weights):
            encoder = create_diffusers_clip_model_from_ldm(kind, **options)
        elif kind.__name__.startswith("T5") and is_t5_in_single_file(weights):
            encoder = create_diffusers_t5_model_from_checkpoint(kind, **options)
        else:
            encoder = self.beside.network(kind, part)
        return encoder


def opened(path: str, *, revision: str | None, variant: str | None, config: str | None, owner: str) -> Store:
    """Finds what a path names; reads no weights.

    Args:
        path: a pipeline folder, "package:folder", a hub id, or a single file.
        revision: of a hub id.
        variant: of a folder or hub id.
        config: the pipeline beside a single file.
        owner: class that is given them, for messages.

    Raises:
        ValueError: there is no such thing, or a setting does not go with what the path is.
    """
    if path.endswith(PICKLES):
        raise ValueError(
            f"{owner}: path {path!r} is a pickle, which runs code when it is read; give a safetensors file, "
            "or a pipeline folder"
        )
    if not path.endswith(SAFETENSORS):
        if config is not None:
            raise ValueError(
                f"{owner}: config is for a single file, but path {path!r} is a pipeline with its own "
                "settings; leave it out"
            )
        root = located_folder(path, marker="model_index.json", kind="pipeline", owner=owner)
        if revision is not None and Path(root).exists():
            raise ValueError(
                f"{owner}: revision {revision!r} is for a hub id, but path {path!r} is a folder here; leave "
                "it out"
            )
        return PipelineFolder(owner, root, revision=revision, variant=variant)
    if not Path(path).is_file():
        raise ValueError(f"{owner}: there is no file {path!r}")
    for name, value in (("revision", revision), ("variant", variant)):
        if value is not None:
            raise ValueError(f"{owner}: {name} {value!r} does not go with a single file; leave it out")
    if config is None:
        raise ValueError(
            f"{owner}: {path!r} holds weights alone; give config: a pipeline folder or hub id of the same "
            "kind, such as stable-diffusion-v1-5/stable-diffusion-v1-5, for its settings and tokenizers"
        )
    root = located_folder(config, marker="model_index.json", kind="pipeline", owner=f"{owner}: config")
    return SingleFile(owner, Path(path), PipelineFolder(owner, root))
