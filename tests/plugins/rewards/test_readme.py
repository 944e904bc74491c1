"""What the plugin's README promises of the code."""

from pathlib import Path

import alignkit_rewards
from alignkit_rewards.places import PINNED

TEXT = (Path(alignkit_rewards.__file__).parent / "README.md").read_text(encoding="utf-8")


def test_every_reward_and_features_are_in_the_tables() -> None:
    for name in (*alignkit_rewards.alignkit_rewards(), *alignkit_rewards.alignkit_features()):
        assert f"| `{name}` |" in TEXT


def test_commits_are_those_of_the_code() -> None:
    rows = [
        line for line in TEXT.splitlines() if line.startswith("| `") and line.count("/") and len(line) > 60
    ]
    for hub_id, commit in PINNED.items():
        assert any(f"`{hub_id}`" in row and row.endswith(f"| `{commit}` |") for row in rows), hub_id
