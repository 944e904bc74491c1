"""What of a model's settings asks for code."""

from typing import Any

import pytest

from alignkit.modelcode import refuse_code


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"auto_map": {"AutoModel": "evil.Evil"}}, "auto_map is"),
        ({"vision_config": {"auto_map": {"AutoModel": "someone/x--evil.Evil"}}}, "vision_config.auto_map is"),
        ({"parts": [{"trust_remote_code": True}]}, r"parts\[0\].trust_remote_code is 'True'"),
        ({"custom_pipeline": "someone/pipe"}, "custom_pipeline is 'someone/pipe'"),
        ({"attn_implementation": "someone/kernel@main:f"}, "attn_implementation is 'someone/kernel@main:f'"),
        ({"_attn_implementation": {"vision_config": "paged|a/b"}}, "_attn_implementation is"),
        ({"experts_implementation": "a/b"}, "experts_implementation is 'a/b'"),
    ],
)
def test_requests_are_refused_by_their_key(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=rf"^Reader: 'the/model' asks for code of its own: {told}"):
        refuse_code(settings, "the/model", "Reader")


def test_plain_settings_are_not() -> None:
    plain = {
        "auto_map": None,
        "trust_remote_code": False,
        "attn_implementation": "sdpa",
        "_name_or_path": "someone/model",
        "hidden_size": 8,
        "layers": [{"kind": "attention"}],
    }
    refuse_code(plain, "the/model", "Reader")
