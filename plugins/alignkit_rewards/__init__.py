"""Rewards and features of published models, and rewards that run elsewhere."""

from collections.abc import Mapping

from alignkit.hookspecs import Command, hookimpl


@hookimpl
def alignkit_rewards() -> Mapping[str, str]:
    return {
        "Aesthetic": "alignkit_rewards.aesthetic:Aesthetic",
        "CLIPScore": "alignkit_rewards.clip_score:CLIPScore",
        "HPSv2": "alignkit_rewards.hpsv2:HPSv2",
        "ImageReward": "alignkit_rewards.image_reward:ImageReward",
        "PickScore": "alignkit_rewards.pick_score:PickScore",
        "RemoteReward": "alignkit_rewards.remote:RemoteReward",
    }


@hookimpl
def alignkit_features() -> Mapping[str, str]:
    return {
        "CLIPFeatures": "alignkit_rewards.features:CLIPFeatures",
        "DINOFeatures": "alignkit_rewards.features:DINOFeatures",
    }


@hookimpl
def alignkit_commands() -> Mapping[str, Command]:
    return {
        "serve-reward": Command(
            "alignkit_rewards.command:main",
            "score pictures of other programs: alignkit serve-reward PickScore",
        )
    }
