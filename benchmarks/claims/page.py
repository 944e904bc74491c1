"""Writes the bench's page from its results: README.md, plots/ and grids/.

    python benchmarks/claims/page.py

What is written by hand is in investigations/: why a claim does not hold, or cannot be told.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from arms import (
    BASE,
    DISPLACEMENT,
    DIVERSITY,
    FIDELITY,
    RECOGNITION,
    RESULTS,
    SEEDS,
    TUNING_SEED,
    Runs,
    runs_of,
)
from choice import Choice
from claim import Claim, Line
from intervals import FAILS, HOLDS, UNDECIDED, Condition, interval, together
from one import NUM_SHOWN, prompts_of
from PIL import Image
from plots import plot
from probes import probes
from registry import CLAIMS
from run import missing, wanted

from alignkit.evaluation.sheet import contact_sheet
from alignkit.evaluation.statistics.bootstrap import Interval
from alignkit.files import whole, write_text

HERE = Path(__file__).parent
SIGN = {HOLDS: "**holds**", FAILS: "**does not hold**", UNDECIDED: "**cannot tell**"}
NOT_YET = "not yet run"
TITLE = "# Every paper's claim, in miniature"
INTRODUCTION = f"""
`python benchmarks/claims/run.py --runs runs/claims` runs what is missing and writes this page from
results/; it needs `pip install -e '.[bench]'`.

The base, the pictures and the people are those of the embedded default, where the true utility of any
picture is known. Each claim's protocol was committed before its first run and is the docstring of its
module; its arms and conditions are that module's code. Settings are chosen on prompts that were trained on,
with a training seed of their own; what is reported is of {len(SEEDS)} other seeds and 57 held-out prompts.
Intervals (95 %) are over both.

A condition holds where its whole interval is above 0, and does not where even the smallest effect that
would matter is outside; a claim holds if all its conditions do, the control's among them. What is found
here is of a base of 4.2 million weights on pictures of 32 x 32: it says what a method does, not what it
would do to SDXL.
"""


def main() -> None:
    """Writes everything."""
    for claim in CLAIMS:
        runs = complete(claim)
        if runs is not None:
            plot(claim, runs, HERE / "plots" / f"{claim.letter}.png")
            draw_grid(claim, runs)
    write_text(HERE / "README.md", page())
    print(f"written to {HERE / 'README.md'}")


def page() -> str:
    """The text of README.md."""
    found = {claim.letter: complete(claim) for claim in CLAIMS}
    lines = [
        *head(),
        *overview(found),
        *(line for claim in CLAIMS for line in section(claim, found)),
    ]
    return "\n".join(lines) + "\n"


def complete(claim: Claim) -> Runs | None:
    """All of a claim's runs; None while one is missing."""
    arms = claim.arms()
    return None if arms is None or missing(wanted([claim])) else runs_of(arms)


def head() -> Iterator[str]:
    """What the page is."""
    content = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    hours = sum(sum(one["seconds"].values()) for one in content) / 3600
    commits = sorted({one["commit"] for one in content})
    yield from (TITLE, "", INTRODUCTION.strip(), "")
    todo = len(missing(wanted(CLAIMS)))
    state = f"{todo} are missing, besides those that wait for a choice" if todo else "all there are"
    yield f"{len(content)} runs, {state}; {hours:.1f} hours of one core; commit {', '.join(commits)}."
    yield ""


def overview(found: dict[str, Runs | None]) -> Iterator[str]:
    """The table that a paper could print."""
    yield "| | claim | verdict | decisive figure | control |"
    yield "|---|---|---|---|---|"
    for claim in CLAIMS:
        runs = found[claim.letter]
        if runs is None:
            yield f"| ({claim.letter}) | [{claim.title}](#{anchor(claim)}) | {NOT_YET} | | {claim.control} |"
            continue
        conditions = list(claim.conditions(runs))
        deciding = [c for c in conditions if c.verdict != HOLDS] or conditions
        first = deciding[0]
        yield (
            f"| ({claim.letter}) | [{claim.title}](#{anchor(claim)}) | {SIGN[together(conditions)]} "
            f"| {first.text}: {cell(first.found)}{first.unit} | {claim.control} |"
        )
    yield ""


def section(claim: Claim, found: dict[str, Runs | None]) -> Iterator[str]:
    """Everything about one claim."""
    yield f"## Claim {claim.letter}"
    yield ""
    yield f"{claim.title}. {claim.paper[0].upper()}{claim.paper[1:]}. Control: {claim.control}."
    yield ""
    runs = found[claim.letter]
    if runs is None:
        yield f"{NOT_YET[0].upper()}{NOT_YET[1:]}: {len(missing(wanted([claim])))} runs or more are missing."
        yield ""
    else:
        conditions = list(claim.conditions(runs))
        yield f"Verdict: {SIGN[together(conditions)]}."
        yield ""
        yield from conditions_of(conditions, claim.remarks(runs))
        yield from table(claim.lines(runs), runs)
        yield from pictures(claim, runs)
    path = HERE / "investigations" / f"{claim.letter}.md"
    if path.exists():
        yield from ("### What was looked into", "", path.read_text(encoding="utf-8").strip(), "")
        yield from probed(claim)
    yield from ("<details><summary>Protocol</summary>", "", claim.protocol, "", "</details>", "")
    yield from ("<details><summary>What was chosen</summary>", "")
    for choice in claim.choices():
        yield from chosen(choice)
    yield from ("</details>", "")


def conditions_of(conditions: Sequence[Condition], remarks: Sequence[Condition]) -> Iterator[str]:
    """What decides, and what does not."""
    yield "| condition | found | |"
    yield "|---|---|---|"
    for one in conditions:
        yield f"| {one.text} | {cell(one.found)}{one.unit} | {one.verdict} |"
    for one in remarks:
        yield f"| besides: {one.text} | {cell(one.found)}{one.unit} | |"
    yield ""


def table(lines: Sequence[Line], runs: Runs) -> Iterator[str]:
    """All arms: utility, and what it cost."""
    yield "| | gain in utility | fidelity, share of base | recognition | diversity | displacement |"
    yield "|---|---|---|---|---|---|"
    base = Line("base", BASE)
    yield f"| base | | 100.0 % | {of(runs, base, RECOGNITION)} | {of(runs, base, DIVERSITY)} | |"
    for line in lines:
        fidelity = (
            runs.table(line.arm, FIDELITY, audience=line.audience).mean() / runs.table(BASE, FIDELITY).mean()
        )
        rest = " | ".join(of(runs, line, measure) for measure in (RECOGNITION, DIVERSITY, DISPLACEMENT))
        gain = interval(runs.gain(line.arm, line.measure, audience=line.audience))
        yield f"| {line.label} | {cell(gain, 2)} | {100 * fidelity:.1f} % | {rest} |"
    yield ""


def of(runs: Runs, line: Line, measure: str) -> str:
    """The mean of a measure."""
    return f"{runs.table(line.arm, measure, audience=line.audience).mean():.3f}"


def probed(claim: Claim) -> Iterator[str]:
    """What was changed to find a cause, and what came of it."""
    planned = probes()
    if claim.letter not in planned:
        return
    seeds, tried = planned[claim.letter]
    runs = runs_of([probe.arm for probe in tried], seeds)
    if runs is None:
        return
    tuned = tuple(seeds) == (TUNING_SEED,)
    prompts = "57 prompts that were trained on" if tuned else "the prompts that are reported"
    yield f"Fidelity is the share of the base's. Training seeds {', '.join(map(str, seeds))}, on {prompts}:"
    yield ""
    yield "| suspect | changed | gain in utility | minus the first's | fidelity | diversity | displacement |"
    yield "|---|---|---|---|---|---|---|"
    first_SP = runs.gain(tried[0].arm.name)
    for suspect, change, arm in tried:
        share = runs.table(arm.name, FIDELITY).mean() / runs.table(BASE, FIDELITY).mean()
        rest = " | ".join(of(runs, Line("", arm.name), measure) for measure in (DIVERSITY, DISPLACEMENT))
        gain_SP = runs.gain(arm.name)
        over = "" if arm == tried[0].arm else cell(interval(gain_SP - first_SP), 2)
        gain = cell(interval(gain_SP), 2)
        yield f"| {suspect} | {change} | {gain} | {over} | {100 * share:.1f} % | {rest} |"
    yield ""


def pictures(claim: Claim, runs: Runs) -> Iterator[str]:
    """The plot, and the grid."""
    shown = [line.label for line in claim.lines(runs)[:2]]
    yield f"![gains of all arms of claim {claim.letter}](plots/{claim.letter}.png)"
    yield ""
    yield f"![base, {shown[0]}, {shown[1]}](grids/{claim.letter}.png)"
    yield ""
    yield "The same prompts and noise in each column; training seed 0."
    yield ""


def draw_grid(claim: Claim, runs: Runs) -> None:
    """Pictures of the first two arms beside the base's."""
    prompts = prompts_of(0)
    labels = [prompts[i * len(prompts) // NUM_SHOWN] for i in range(NUM_SHOWN)]
    shown = [Line("base", BASE), *claim.lines(runs)[:2]]
    rows = [
        tiles(RESULTS / "pictures" / f"{'-'.join(filter(None, (line.arm, line.audience)))}.png")
        for line in shown
    ]
    sheet = contact_sheet(rows, [line.label for line in shown], labels)
    with whole(HERE / "grids" / f"{claim.letter}.png") as partial:
        sheet.save(partial, "PNG")


def tiles(path: Path) -> list[Image.Image]:
    """The pictures of a strip."""
    strip = Image.open(path).convert("RGB")
    side = strip.height
    return [strip.crop((side * i, 0, side * (i + 1), side)) for i in range(strip.width // side)]


def chosen(choice: Choice) -> Iterator[str]:
    """What a choice looked at."""
    figures = choice.table()
    if figures is None:
        yield from (f"{choice.name}: not chosen yet.", "")
        return
    label = choice.rule(figures)
    yield from (f"{choice.name}: {label}.", "")
    yield "| | gain in utility | fidelity, share of base | diversity |"
    yield "|---|---|---|---|"
    for name, one in figures.items():
        yield f"| {name} | {one.gain:+.3f} | {100 * one.fidelity:.1f} % | {one.diversity:.3f} |"
    yield ""


def cell(found: Interval, digits: int = 3) -> str:
    """A figure with its interval."""
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def anchor(claim: Claim) -> str:
    """Where its section is."""
    return f"claim-{claim.letter}"


if __name__ == "__main__":
    main()
