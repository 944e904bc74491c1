"""Which share of the branches the tests take, by package; after ``make coverage``, which runs this.

python benchmarks/branches.py --out benchmarks/results
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

from report import header

DATA = Path("build", "coverage")
ENOUGH = 0.9


def main() -> int:
    """Writes the table; 1 where too few are taken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the table; it is only printed without it")
    options = parser.parse_args()
    path = DATA / "coverage.json"
    subprocess.run([sys.executable, "-m", "coverage", "json", "-q", "-o", str(path)], check=True)
    files = json.loads(path.read_text(encoding="utf-8"))["files"]
    lines, share = table({name: said["summary"] for name, said in files.items()})
    print("\n".join(lines))
    if options.out:
        (options.out / "coverage.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if share >= ENOUGH else 1


def table(files: dict[str, dict[str, int]]) -> tuple[list[str], float]:
    """The page, and the share of all branches that were taken."""
    # branches and lines, of each those that were taken and all
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for name, summary in files.items():
        parts = Path(name).parts
        package = "/".join(parts[:2]) if parts[0] == "plugins" or len(parts) > 2 else parts[0]
        for key in (package, "all"):
            for place, count in enumerate(
                ("covered_branches", "num_branches", "covered_lines", "num_statements")
            ):
                counts[key][place] += summary[count]
    lines = [
        *header("Coverage", f"coverage {version('coverage')}, with the processes that tests start."),
        "| package | branches | of | taken | lines |",
        "|---|---|---|---|---|",
    ]
    for key in sorted(counts, key=lambda name: (name == "all", name)):
        branches, of, ran, statements = counts[key]
        shares = [f"{part / max(whole, 1):.1%}" for part, whole in ((branches, of), (ran, statements))]
        lines.append(f"| `{key}` | {branches} | {of} | {shares[0]} | {shares[1]} |")
    branches, of, *_ = counts["all"]
    return lines, branches / max(of, 1)


if __name__ == "__main__":
    sys.exit(main())
