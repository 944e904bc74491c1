"""Preference pairs from files, and published lists of prompts."""

from collections.abc import Mapping

from alignkit.hookspecs import hookimpl


@hookimpl
def alignkit_sources() -> Mapping[str, str]:
    return {
        "PickAPic": "alignkit_sources.pickapic:PickAPic",
        "HPDv2": "alignkit_sources.hpd:HPDv2",
        "HPDv3": "alignkit_sources.hpd:HPDv3",
        "ImageRewardDB": "alignkit_sources.imagereward:ImageRewardDB",
        "TRLPairs": "alignkit_sources.trl:TRLPairs",
        "JSONLines": "alignkit_sources.jsonlines:JSONLines",
        "PairFolders": "alignkit_sources.folders:PairFolders",
        "PairSuffixes": "alignkit_sources.folders:PairSuffixes",
        "WebDatasetPairs": "alignkit_sources.webdataset:WebDatasetPairs",
        "Captioned": "alignkit_sources.captioned:Captioned",
        "CaptionedTable": "alignkit_sources.captioned:CaptionedTable",
    }


@hookimpl
def alignkit_suites() -> Mapping[str, str]:
    return {
        "DrawBench": "alignkit_sources.suites:DrawBench",
        "GenEval": "alignkit_sources.suites:GenEval",
        "HPDv2Benchmark": "alignkit_sources.suites:HPDv2Benchmark",
        "PartiPrompts": "alignkit_sources.suites:PartiPrompts",
        "PickAPicUnique": "alignkit_sources.suites:PickAPicUnique",
    }
