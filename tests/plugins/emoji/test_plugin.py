"""The plugin's hooks: what is named exists, and naming costs nothing."""

import importlib
import subprocess
import sys

import pytest

import alignkit_emoji
from alignkit import components
from alignkit.hookspecs import KINDS

BASES = {
    "source": components.PairSource,
    "reward": components.Reward,
    "suite": components.PromptSuite,
}
NAMED = [
    (kind, name, path)
    for kind, hook in KINDS.items()
    if hasattr(alignkit_emoji, hook)
    for name, path in getattr(alignkit_emoji, hook)().items()
]


def test_plugin_names_its_seven_components():
    assert [name for _, name, _ in NAMED] == [
        "EmojiPairs",
        "MajorityTaste",
        "MinorityTaste",
        "EmojiFidelity",
        "EmojiRecognition",
        "EmojiFeatures",
        "Emoji",
    ]


@pytest.mark.parametrize(("kind", "name", "path"), NAMED)
def test_name_is_the_name_of_a_class_of_its_kind(kind, name, path):
    module, _, attribute = path.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    assert found.__name__ == name
    assert issubclass(found, BASES.get(kind, object))


def test_top_module_imports_no_torch():
    code = "import sys, alignkit_emoji; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
