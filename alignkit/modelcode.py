"""Models whose settings ask for code of their own. None of it is ever run: they are refused in words."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from alignkit.trust import TrustError

# what transformers and diffusers take for a request to run Python of a repository
_PYTHON = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code")
# and, if it is OWNER/NAME, for a request to load what is compiled there
_KERNELS = re.compile(r"_?\w*(attn|attention|experts)_implementation|_?attention_backend|_?kernel_config")


def refuse_code(settings: Mapping[str, Any], place: str, owner: str) -> None:
    """Refuses a model that comes with code.

    Args:
        settings: its config.json, or other settings of it.
        place: where the model is, for messages.
        owner: class that reads it, for messages.

    Raises:
        TrustError: it asks for code.
    """
    for key, value in _requests(settings):
        raise TrustError(
            f"{owner}: {place!r} asks for code of its own: {key} is {str(value)[:80]!r}\n"
            "Code of a model is never run, and there is no option to run it; give a model of the classes of "
            "transformers and diffusers"
        )


def _requests(settings: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            inner = f"{key}.{name}" if key else str(name)
            compiled = _KERNELS.fullmatch(str(name)) and "/" in str(value)
            if (name in _PYTHON and value) or compiled:
                yield inner, value
            else:
                yield from _requests(value, inner)
    elif isinstance(settings, list | tuple):
        for place, value in enumerate(settings):
            yield from _requests(value, f"{key}[{place}]")
