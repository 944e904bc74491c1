"""What a reference bank's numbers follow from. Shape suffix: T steps."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from alignkit.components import Sampler
from alignkit.data.bank.manifest import VERSION
from alignkit.data.cache.table import source_hash
from alignkit.data.module import AlignData

if TYPE_CHECKING:
    from alignkit.module import AlignModule


def origin_of(module: AlignModule, data: AlignData) -> dict[str, str]:
    """Everything that a reference's numbers follow from, once a Trainer has set both up.

    Args:
        module: whose reference, sampler and encoders.
        data: whose pairs.
    """
    assert module.reference is not None
    backbone, trainer, cache = module.backbone, module.trainer, data.opened_cache
    compiled = module.compiled.how
    return {
        "version": VERSION,
        "the reference": module.reference.fingerprint(),
        "the schedule": _hash_of(*backbone.schedule),
        "what the networks predict": backbone.prediction_type,
        **{f"the model's {part}": told for part, told in backbone.encoder_hashes().items()},
        "backbone.caption_dropout": f"{backbone.caption_dropout:g}",
        "backbone.frozen_dtype": backbone.frozen_dtype,
        "the sampler": _settings(module.sampler),
        "seed_everything": str(module.seed),
        "trainer.precision": str(trainer.precision),
        "the kind of device": trainer.strategy.root_device.type,
        "model.compile": "none" if compiled is None else str(compiled),
        "data.resolution": str(data.resolution),
        "data.max_pixels, crop_shift and flip": f"{data.max_pixels}, {data.framing}",
        "data.cache": "none" if cache is None else cache.identity,
        **{f"data.{split}": source_hash(source) for split, source in data.sources().items()},
    }


def _settings(sampler: Sampler) -> str:
    """Class and settings of a sampler whose points follow from these, batch and key alone."""
    found = type(sampler)
    own = {name: value for name, value in vars(sampler).items() if name[0] != "_" and name != "training"}
    told = ", ".join(f"{name}={value!r}" for name, value in sorted(own.items()))
    return f"{found.__module__}.{found.__qualname__}({told})"


def _hash_of(*level_T: Any) -> str:
    digest = hashlib.sha256()
    for one_T in level_T:
        digest.update(one_T.cpu().numpy().tobytes())
    return digest.hexdigest()
