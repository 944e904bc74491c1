"""The embedded default: real pictures, simulated people with known tastes, and judges; no download."""

from collections.abc import Mapping

from alignkit.hookspecs import hookimpl


@hookimpl
def alignkit_sources() -> Mapping[str, str]:
    """The shipped judgements."""
    return {"EmojiPairs": "alignkit_emoji.source:EmojiPairs"}


@hookimpl
def alignkit_rewards() -> Mapping[str, str]:
    """The two exact utilities, and two views of the shipped judge."""
    return {
        "MajorityTaste": "alignkit_emoji.reward:MajorityTaste",
        "MinorityTaste": "alignkit_emoji.reward:MinorityTaste",
        "EmojiFidelity": "alignkit_emoji.reward:EmojiFidelity",
        "EmojiRecognition": "alignkit_emoji.reward:EmojiRecognition",
    }


@hookimpl
def alignkit_features() -> Mapping[str, str]:
    """What the shipped judge sees."""
    return {"EmojiFeatures": "alignkit_emoji.features:EmojiFeatures"}


@hookimpl
def alignkit_suites() -> Mapping[str, str]:
    """The held-out prompts."""
    return {"Emoji": "alignkit_emoji.suite:Emoji"}
