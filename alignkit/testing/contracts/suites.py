"""What suites of prompts promise."""

from alignkit.components import PromptSuite

__all__ = ["test_suite_has_prompts_and_says_where_they_stand"]


def test_suite_has_prompts_and_says_where_they_stand(suite: PromptSuite) -> None:
    """The same at every call, in texts; the files are there, so that their hashes can be kept."""
    prompts = suite.prompts()
    assert prompts
    assert list(suite.prompts()) == list(prompts)
    for prompt in prompts:
        assert isinstance(prompt.text, str)
        assert isinstance(prompt.category, str)
    assert all(path.is_file() for path in suite.files().values())
    assert suite.known_count is None or suite.known_count > 0
