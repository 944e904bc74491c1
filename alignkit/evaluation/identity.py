"""What a model's pictures depend on: hashes of its weights, of what is around them, and of its settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from alignkit.components import Backbone
from alignkit.policy import fingerprint

if TYPE_CHECKING:
    from alignkit.evaluation.models import Model


def identified(model: Model) -> dict[str, Any]:
    """Loads a model and says what it is, in values that JSON takes.

    Weights of the network are hashed whole, sha256; of what stays frozen, the backbone says how it hashes.
    """
    network = model.load()
    told = None if model.tokens_ULD is None else tensor_hash(model.tokens_ULD)
    return {
        "weights": fingerprint(dict(network.named_parameters())),
        **surroundings(model.backbone, network),
        "audience": told,
    }


def surroundings(backbone: Backbone, network: nn.Module) -> dict[str, Any]:
    """What pictures depend on besides a network's weights and a conditioner, in values that JSON takes."""
    try:
        encoders: Mapping[str, str] = backbone.encoder_hashes()
    except ValueError:  # it does not say
        encoders = {part: fingerprint(dict(it.named_parameters())) for part, it in backbone.frozen().items()}
    return {
        "backbone": type(backbone).__name__,
        "encoders": dict(encoders),
        "schedule": tensor_hash(backbone.schedule.alpha_T),
        "prediction_type": backbone.prediction_type,
        "sampler": backbone.solver,
        "drawing": dict(backbone.drawing_settings(network)),
    }


def tensor_hash(tensor: Tensor) -> str:
    """A hash of values, sha256."""
    return hashlib.sha256(tensor.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def key_of(*parts: Any) -> str:
    """A hash of values that JSON takes, of 128 bits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
