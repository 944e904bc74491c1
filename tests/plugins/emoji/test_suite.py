"""The held-out prompts as a suite."""

from alignkit_emoji.source import EmojiPairs
from alignkit_emoji.suite import Emoji


def test_prompts_are_the_held_out_ones_each_with_its_group() -> None:
    suite = Emoji()
    prompts = suite.prompts()
    assert {prompt.text for prompt in prompts} == set(EmojiPairs("test").prompts())
    assert len(prompts) == Emoji.known_count
    assert not {prompt.text for prompt in prompts} & set(EmojiPairs("train").prompts())
    groups = {prompt.text: prompt.category for prompt in prompts}
    assert groups["penguin"] == "Animals & Nature"
    assert groups["burrito"] == "Food & Drink"
    assert set(groups.values()) == {"Animals & Nature", "Food & Drink"}
