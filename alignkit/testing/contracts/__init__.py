"""What every component of every installed plugin promises, as tests.

One line of a test file runs them: ``from alignkit.testing.contracts import *``. That file may say more:

- ``DISTRIBUTION = "acme-align"`` leaves the plugins of other distributions out.
- ``ARGUMENTS = {"AcmePairs": lambda folder: {"path": write_pairs(folder)}}`` gives arguments to a component,
  by its name; ``folder`` is a new one. A component is skipped that needs arguments which nobody gave.
- ``BACKBONE = lambda folder: AcmeBackbone(...)`` gives the model that conditioners are attached to, where
  they do not fit ``alignkit.testing.ToyBackbone``.

A prompt's loss must not depend on the others. An objective that needs a statistic over prompts says so by
asking ``alignkit.distributed.gathered`` for it, which is right with any number of processes; its loss only
has to follow the order of prompts and to send no gradient from one to another.
"""

import pytest

_PARTS = (
    "backbones",
    "conditioners",
    "judges",
    "objectives",
    "plugins",
    "samplers",
    "settings",
    "sources",
    "suites",
    "weightings",
)
# so that a failed `assert` shows its values, as in a test file
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS))

from alignkit.testing.contracts import (  # noqa: E402
    backbones,
    building,
    conditioners,
    judges,
    objectives,
    plugins,
    samplers,
    settings,
    sources,
    suites,
    weightings,
)
from alignkit.testing.contracts.backbones import *  # noqa: E402, F403
from alignkit.testing.contracts.building import *  # noqa: E402, F403
from alignkit.testing.contracts.conditioners import *  # noqa: E402, F403
from alignkit.testing.contracts.judges import *  # noqa: E402, F403
from alignkit.testing.contracts.objectives import *  # noqa: E402, F403
from alignkit.testing.contracts.plugins import *  # noqa: E402, F403
from alignkit.testing.contracts.samplers import *  # noqa: E402, F403
from alignkit.testing.contracts.settings import *  # noqa: E402, F403
from alignkit.testing.contracts.sources import *  # noqa: E402, F403
from alignkit.testing.contracts.suites import *  # noqa: E402, F403
from alignkit.testing.contracts.weightings import *  # noqa: E402, F403

__all__ = (
    backbones.__all__
    + building.__all__
    + conditioners.__all__
    + judges.__all__
    + objectives.__all__
    + plugins.__all__
    + samplers.__all__
    + settings.__all__
    + sources.__all__
    + suites.__all__
    + weightings.__all__
)
