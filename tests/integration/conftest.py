"""Tiny random pipelines on disk, pairs in memory, and the command line in this process."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alignkit.testing import ToyPairs
from alignkit.testing.pipelines import tiny_stable_diffusion, tiny_stable_diffusion_xl

tiny_pipeline = tiny_stable_diffusion


class NoisyPairs(ToyPairs):
    """Toy pairs, under the name that the configs of these tests use."""


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("pipelines") / "epsilon")


@pytest.fixture(scope="session")
def v_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("pipelines") / "v", "v_prediction")


@pytest.fixture(scope="session")
def xl_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stable_diffusion_xl(tmp_path_factory.mktemp("pipelines") / "xl")


@pytest.fixture
def alignkit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs the command line in this process, in an empty folder; gives exit code, output and errors."""
    from alignkit.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.delenv("ALIGNKIT_RUN", raising=False)
        # the second has one of its own if nobody had set up logging when it was imported
        for logger in ("lightning", "lightning.pytorch"):
            for handler in logging.getLogger(logger).handlers:
                assert isinstance(handler, logging.StreamHandler)
                # not that of the test that imported lightning; and for this test alone, as it is closed then
                monkeypatch.setattr(handler, "stream", sys.stderr)
        capsys.readouterr()
        try:
            code = main(list(arguments))
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        output = capsys.readouterr()
        return code, output.out, output.err

    yield run
    # the run's folder is handed to DDP's processes through the environment
    monkeypatch.delenv("ALIGNKIT_RUN", raising=False)
