"""The command line: answers `--help` and `list` at once, and imports torch only for what needs it."""

import importlib
import io
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence

from alignkit import __version__, catalog, signals, trust
from alignkit.catalog import COMMAND, Catalog, CatalogError
from alignkit.configfiles import ConfigNotFoundError, packaged_configs
from alignkit.hookspecs import COMMANDS, KINDS
from alignkit.mistakes import UsageError
from alignkit.signals import Stopped
from alignkit.trust import TrustError

USAGE = (
    "usage: alignkit [-p no:PLUGIN] [--trust MODULE] [--debug] COMMAND [options]\n\n"
    "Aligns text-to-image diffusion models to human preferences.\n\ncommands:\n"
)
OPTIONS = textwrap.dedent("""
    options:
      -p no:PLUGIN  go on without a plugin, by its name or its distribution's
      --trust MODULE
                    let configs name classes of this module, too; may be repeated
      --debug       show the traceback of an error
      --version     print the version
      -h, --help    print this; alignkit COMMAND --help explains a command

    Try it: alignkit list --configs, then alignkit fit --config FILE with one of them
    """)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 2 for a user's mistake, told in a few lines."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # prompts and figures may have what a terminal has not
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    trusted, arguments = trusted_of(arguments)
    blocked: list[str] = []
    while arguments[:1] == ["-p"]:
        if len(arguments) < 2 or not arguments[1].startswith("no:"):
            return fail("-p takes no:PLUGIN, such as: alignkit -p no:acme list")
        blocked.append(arguments[1].removeprefix("no:"))
        arguments = arguments[2:]
    if arguments[:1] == ["--version"]:
        print(f"alignkit {__version__}")
        return 0
    with signals.handled() as handler:
        try:
            code = command(arguments, blocked, trusted)
        except (CatalogError, ConfigNotFoundError, TrustError, UsageError) as error:
            if debug:
                traceback.print_exception(error)
            code = fail(str(error))
        except Stopped as stopped:
            if not handler.is_quiet:
                notes = getattr(stopped, "__notes__", ())
                print("; ".join(("alignkit: stopped", *notes)), file=sys.stderr)
            code = int(stopped.code or 0)  # of a thread, where no signal is handled, too
        if handler.number is not None:
            handler.end_others()
            return 128 + handler.number
    return code


def command(arguments: list[str], blocked: list[str], trusted: list[str]) -> int:
    """Finds what was asked for, and runs it; returns its exit code."""
    found = catalog.discover(blocked)
    commands = {name: command.help for name, command in COMMANDS.items()}
    commands |= {name: found.components[COMMAND, name].help for name in found.names(COMMAND)}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE + "".join(f"  {name:10} {text}\n" for name, text in commands.items()) + OPTIONS, end="")
        return 0
    if arguments[0] not in commands:
        return fail(f"unknown command {arguments[0]!r}; the commands are {', '.join(commands)}")
    with trust.trusting(trusted, found):
        return run(found, arguments[0], arguments[1:])


def trusted_of(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What ``--trust`` names, wherever it stands, and the other arguments.

    Example:
        >>> trusted_of(["fit", "--trust", "mine", "--run", "x"])
        (['mine'], ['fit', '--run', 'x'])
    """
    trusted, others, rest = [], [], iter(arguments)
    for argument in rest:
        if argument == "--trust":
            trusted.append(next(rest, ""))
        elif argument.startswith("--trust="):
            trusted.append(argument.removeprefix("--trust="))
        else:
            others.append(argument)
    return trusted, others


def run(found: Catalog, command: str, arguments: list[str]) -> int:
    """Dispatches a command."""
    catalog.print_failures(found)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is imported
    if command not in COMMANDS:
        return int(found.resolve(COMMAND, command)(found, arguments))
    module, _, function = COMMANDS[command].target.partition(":")
    # torch is imported only by the commands that need it
    return int(getattr(importlib.import_module(module), function)(found, arguments))


def list_installed(found: Catalog, arguments: list[str]) -> int:
    """Prints components, configs or papers."""
    if arguments and arguments not in (["--configs"], ["--papers"]):
        if arguments[0] in ("-h", "--help"):
            print("usage: alignkit list [--configs | --papers]")
            print("\nLists components, packaged configs, or papers.")
            return 0
        return fail(f"alignkit list takes --configs or --papers, got {' '.join(arguments)!r}")
    if arguments == ["--configs"]:
        configs = packaged_configs()
        for name, path in configs.items():
            print(f"{name:{max(map(len, configs))}}  {headline(path.read_text(encoding='utf-8'))}")
    elif arguments == ["--papers"]:
        print(papers_table(found))
    else:
        sources = {name: f"{paper.authors}, {paper.year}" for p in found.papers.values() for paper in p
                   for name in paper.components}  # fmt: skip
        print(f"{'kind':12} {'name':20} {'plugin':16} {'distribution':24} paper")
        for kind in (*KINDS, COMMAND):
            for name in found.names(kind):
                component = found.components[kind, name]
                line = f"{kind:12} {name:20} {component.plugin:16} {component.distribution:24}"
                print(f"{line} {sources.get(name, '')}".rstrip())
    return 1 if found.failures else 0


def headline(text: str) -> str:
    """What a config's first comment says it is."""
    return text.split("\n", 1)[0].lstrip("# ") if text.startswith("#") else ""


def papers_table(found: Catalog) -> str:
    """The table of papers as the README shows it, in Markdown."""
    lines = ["| paper | component | plugin | configs | where it deviates |", "|---|---|---|---|---|"]
    for plugin, papers in found.papers.items():
        for paper in papers:
            configs = "<br>".join(f"`{config}`" for config in paper.configs)
            deviations = " ".join(paper.deviations) or "nowhere known"
            components = ", ".join(f"`{name}`" for name in paper.components)
            cite = f"[{paper.title}]({paper.url}) ({paper.authors}, {paper.year})"
            lines.append(f"| {cite} | {components} | `{plugin}` | {configs} | {deviations} |")
    return "\n".join(lines)


def fail(message: str) -> int:
    """Prints an error of at most five lines; returns the exit code of a user's mistake."""
    lines = [line[:300] for line in f"alignkit: error: {message}".splitlines()]
    print("\n".join(lines[:5]), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
