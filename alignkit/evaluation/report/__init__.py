"""Lays a report out: JSON that holds everything, Markdown, and a page that needs nothing beside it."""

from pathlib import Path

from alignkit.evaluation.contents import Report
from alignkit.evaluation.report.lossless import from_json, to_json
from alignkit.evaluation.report.markdown import to_markdown
from alignkit.evaluation.report.page import to_page
from alignkit.files import write_text

JSON, MARKDOWN, PAGE = "report.json", "report.md", "report.html"


def write(report: Report, folder: Path) -> tuple[Path, ...]:
    """Writes ``report.json``, ``report.md`` and ``report.html``, in place of those of an earlier time.

    Args:
        report: what they say. Its manifest holds what JSON has: mappings by string, lists, texts, numbers.
        folder: where they go; the report's pictures are relative to it.

    Raises:
        ValueError: a figure is not finite, or a picture is missing. No file is written then.
    """
    texts = {JSON: to_json(report), MARKDOWN: to_markdown(report), PAGE: to_page(report, folder)}
    for name, text in texts.items():
        write_text(folder / name, text)
    return tuple(folder / name for name in texts)


def read(folder: Path) -> Report:
    """The report of a folder, from its ``report.json``.

    Raises:
        ValueError: it was written by another version, in another way.
    """
    return from_json((folder / JSON).read_text(encoding="utf-8"))


__all__ = ["read", "write"]
