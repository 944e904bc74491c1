"""One of several processes that run commands together: ``python sharded_worker.py COMMANDS.json``.

The file lists ``{"run": folder, "arguments": [...]}``; exit codes go to ``COMMANDS.<rank>.json``.
"""

import json
import os
import sys
from pathlib import Path

from alignkit.cli import main


def run_all(path: Path) -> None:
    """Runs the commands one after the other, and ends at the first that fails."""
    codes = []
    for command in json.loads(path.read_text()):
        os.environ["ALIGNKIT_RUN"] = command["run"]
        codes.append(main(["--trust", "tests", *command["arguments"]]))
        path.with_suffix(f".{os.environ['RANK']}.json").write_text(json.dumps(codes))
        if codes[-1]:
            sys.exit(codes[-1])


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
