"""Adds one thing that pyproject.toml cannot say: ``configs/`` goes into the wheel, as ``alignkit/configs/``.

The folder stands beside the package because people read and copy it; a wheel has room only inside packages.
``alignkit.configfiles`` finds it in both places.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies the configs into the package that is built; an editable install reads them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._configs():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return super().get_outputs(include_bytecode) + [target for _, target in self._configs()]

    def get_source_files(self) -> list[str]:
        return super().get_source_files() + [source for source, _ in self._configs()]

    def _configs(self) -> list[tuple[str, str]]:
        sources = [path.as_posix() for path in sorted(Path("configs").rglob("*.yaml"))]
        return [(source, str(Path(self.build_lib, "alignkit", source))) for source in sources]


setup(cmdclass={"build_py": BuildWithConfigs})
