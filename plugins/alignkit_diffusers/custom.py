"""Pipelines whose folder brings code of its own."""

from collections.abc import Mapping
from typing import Any

from diffusers import pipelines

from alignkit.modelcode import refuse_code
from alignkit.trust import TrustError

LIBRARIES = ("diffusers", "transformers")


def refuse_custom(index: Mapping[str, Any], place: str, owner: str) -> None:
    """Refuses a pipeline, or a part of one, of a class that is not in diffusers or transformers.

    Args:
        index: what ``model_index.json`` says.
        place: where the pipeline is, for messages.
        owner: class that reads it, for messages.

    Raises:
        TrustError: it has one.
    """
    refuse_code(index, place, owner)
    named = {name: value for name, value in index.items() if isinstance(value, list)}
    for name, value in named.items():
        home = str(value[0]) if value else ""
        # the part of a kind of pipeline, such as stable_diffusion's safety checker, is in diffusers
        if name == "_class_name" or not (
            value[:1] == [None] or home in LIBRARIES or (home.isidentifier() and hasattr(pipelines, home))
        ):
            raise TrustError(
                f"{owner}: {place!r} has a class of its own: {name} is {str(value)[:80]}\n"
                "Code of a model is never run, and there is no option to run it; give a pipeline of the "
                f"classes of {' and '.join(LIBRARIES)}"
            )
