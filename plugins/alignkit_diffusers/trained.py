"""The network that a run trained: as the run left it, or out of one of its checkpoints."""

from pathlib import Path
from typing import Any, NamedTuple

from diffusers.utils import convert_unet_state_dict_to_peft
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn

from alignkit.checkpoints import LAST, saved
from alignkit.generate import Run
from alignkit.policy import has_adapters
from alignkit_diffusers.keys import Adapter
from alignkit_diffusers.pipeline import PipelineBackbone

ADAPTERS = "pytorch_lora_weights.safetensors"


class Trained(NamedTuple):
    """A trained network.

    Args:
        backbone: what it belongs to.
        network: with its adapters, if it has any, not fused.
        has_adapters: whether adapters were trained, and not all weights.
        origin: where its weights come from, in words.
        evaluated: whether it is what the run's summary is about.
    """

    backbone: PipelineBackbone
    network: Any
    has_adapters: bool
    origin: str
    evaluated: bool


def trained(run: Run, config: dict[str, Any], *, checkpoint: str | None, averaged: bool | None) -> Trained:
    """Loads what a run trained.

    Args:
        run: the run.
        config: what it was configured with.
        checkpoint: "last", or the path of one; None for what the run ended with.
        averaged: whether the weights are those of the run's moving average; None for what the run evaluates
            with: its average if it keeps one.

    Raises:
        ValueError: there is no such network.
    """
    backbone = run.backbone
    if run.conditioner is not None:
        raise ValueError(
            f"--run {run.folder}: it trained a {type(run.conditioner).__name__} and left the network as it "
            "was; no format of diffusers holds that. alignkit generate draws with it"
        )
    if not isinstance(backbone, PipelineBackbone):
        raise ValueError(
            f"--run {run.folder}: its backbone {type(backbone).__name__} is no pipeline of diffusers"
        )
    keeps_average = any(_is_average(callback) for callback in config["trainer"].get("callbacks") or ())
    if averaged and not keeps_average:
        raise ValueError(f"--ema: the run {run.folder} keeps no moving average; leave --ema out")
    averaged = keeps_average if averaged is None else averaged
    if checkpoint is None and averaged == keeps_average:
        return _ended(run.folder, backbone, averaged)
    path = Path(checkpoint) if checkpoint not in (None, "last") else run.folder / LAST
    return _saved(path, backbone, averaged, "--raw" if checkpoint is None else "--checkpoint")


def adapters(network: nn.Module) -> list[Adapter]:
    """What adapters add to each layer, whichever way peft scales them.

    Raises:
        ValueError: they do more than add.
    """
    found = []
    for name, layer in network.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if layer.use_dora.get("default"):
            raise ValueError(
                "alignkit export: the run's adapters are DoRA, which rescale the weights, too, and diffusers "
                "drops that from kohya's and ComfyUI's files. Give --format lora, merged, diffusers or "
                "pipeline"
            )
        down, up = (part["default"].weight.detach() for part in (layer.lora_A, layer.lora_B))
        # of rsLoRA, alpha over the root of the rank
        found.append(Adapter(name, down, up, layer.scaling["default"] * layer.r["default"]))
    return found


def _is_average(callback: Any) -> bool:
    name = callback["class_path"] if isinstance(callback, dict) else str(callback)
    return name.rpartition(".")[2] == "EMA"


def _ended(folder: Path, backbone: PipelineBackbone, averaged: bool) -> Trained:
    """What the run wrote when it ended."""
    if not (folder / backbone.network_part).is_dir():
        hint = "; --checkpoint last exports how far it came" if (folder / LAST).exists() else ""
        raise ValueError(
            f"--run {folder}: no trained network there ({backbone.network_part}/); "
            f"did its training come to its end?{hint}"
        )
    if backbone.lora is None:
        network = backbone.load(folder)
    else:
        network = backbone.built().eval()
        _adapt(network, folder / ADAPTERS, f"{backbone.network_part}.")
    origin = "the end of the run" + (", moving average of the weights" if averaged else "")
    return Trained(backbone, network, has_adapters(network), origin, evaluated=True)


def _adapt(network: nn.Module, path: Path, prefix: str) -> None:
    """Gives a network's adapters the weights of a file that diffusers wrote."""
    if not path.is_file():
        raise ValueError(f"alignkit export: the run's adapters are gone: there is no {path}")
    tensors = {name.removeprefix(prefix): tensor for name, tensor in load_file(path).items()}
    tensors = convert_unet_state_dict_to_peft(tensors)
    wanted, given = get_peft_model_state_dict(network).keys(), tensors.keys()
    if wanted != given:
        raise ValueError(
            f"alignkit export: the adapters in {path} are not those that the run's config asks for; "
            f"{len(wanted ^ given)} differ, such as {min(wanted ^ given)}"
        )
    set_peft_model_state_dict(network, tensors)


def _saved(path: Path, backbone: PipelineBackbone, averaged: bool, option: str) -> Trained:
    """What a checkpoint holds."""
    found = saved(path, option, averaged=averaged)
    network = backbone.built().eval()
    found.put_into(network, option)
    origin = f"the run's checkpoint {found.path.name}, step {found.step}"
    origin += ", moving average of the weights" if averaged else ""
    return Trained(backbone, network, has_adapters(network), origin, evaluated=False)
