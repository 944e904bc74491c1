"""What no paper owns: the shared-noise forward process."""

from collections.abc import Mapping

from alignkit.hookspecs import hookimpl


@hookimpl
def alignkit_samplers() -> Mapping[str, str]:
    return {"SharedNoise": "alignkit_standard.sampler:SharedNoise"}
