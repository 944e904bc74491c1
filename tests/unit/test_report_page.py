"""The page of a report, without a browser."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alignkit.evaluation.contents import Evaluated, Report
from alignkit.evaluation.report import write
from alignkit.evaluation.report.axes import axis
from alignkit.evaluation.report.pictures import fit, spread_out
from alignkit.evaluation.results import Prompt
from alignkit.evaluation.statistics.bootstrap import Interval
from tests.reports import SERIES, STEPS, simulated

HOSTILE = (
    "</script><script>document.title = 'pwned'</script>",
    '"><img src=x onerror="document.title=\'pwned\'">',
    "' onmouseover='x <!-- <script> & &lt; {{ 7 * 7 }} {% raw %}",
    "\u0634\u0645\u0633 \u202eabc \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2028 " + "long " * 500,
)
INTERVALS = ("mean", "against_mean", "difference", "win_rate")
SINGLES = ("median_difference", "wins", "ties", "losses", "sign_p", "adjusted_p")


class Page(HTMLParser):
    """All elements of a page with their attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.raw: dict[str, str] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        self._inside = attributes.get("id", tag) if tag in ("script", "style") else ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.raw[self._inside] = self.raw.get(self._inside, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def comparisons(self) -> dict[int, dict[str, dict[str, str]]]:
        """Cells of every comparison by their column."""
        found: dict[int, dict[str, dict[str, str]]] = {}
        for tag, attributes in self.elements:
            if tag == "tr":
                cells = (
                    found.setdefault(int(attributes["data-number"]), {})
                    if "data-number" in attributes
                    else {}
                )
                cells["row"] = attributes
            elif tag == "td" and "data-column" in attributes:
                cells[attributes["data-column"]] = attributes
        return found

    def data(self) -> Any:
        return json.loads(self.raw["data"])


def written(report: Report, folder: Path) -> tuple[Page, str, dict[str, Any]]:
    write(report, folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    return Page(text), text, json.loads((folder / "report.json").read_text(encoding="utf-8"))


def equal(shown: str, figure: float | None) -> bool:
    return shown == "" if figure is None else float(shown) == figure


def test_every_comparison_in_the_page_is_that_of_the_json(tmp_path: Path) -> None:
    """All but those by category of other pairs, digit by digit; the same within its data."""
    page, _, record = written(simulated(tmp_path), tmp_path)
    shown, embedded = page.comparisons(), {one["number"]: one for one in page.data()["comparisons"]}
    expected = {
        number: one
        for number, one in enumerate(record["comparisons"])
        if one["category"] is None or one["against"] == "base"
    }
    assert len(expected) == 6 * 3 + 6 * 2 * 2
    assert set(shown) == set(embedded) == set(expected)
    for number, one in expected.items():
        cells = shown[number]
        assert embedded[number] == {"number": number, **one}
        assert [cells["row"][f"data-{name}"] for name in ("model", "against", "measure")] == [
            one["model"],
            one["against"],
            one["measure"],
        ]
        for name in INTERVALS:
            interval = one[name] or {"mean": None}
            assert equal(cells[name]["data-value"], interval["mean"])
            assert one[name] is None or equal(cells[name]["data-low"], interval["low"])
            assert one[name] is None or equal(cells[name]["data-high"], interval["high"])
        for name in SINGLES if one["category"] is None else SINGLES[:-1]:
            assert equal(cells[name]["data-value"], one[name]), name


def test_differences_are_marked_as_verdicts_are_said(tmp_path: Path) -> None:
    """Where interval, corrected test and win rate agree; only over all prompts."""
    report = simulated(tmp_path)
    found = report.comparisons[0]._replace(adjusted_p=1e-7, win_rate=Interval(0.9, 0.8, 1.0))
    assert (found.against, found.category) == ("base", None)
    variants = {
        "above": found._replace(difference=Interval(1.0, 0.5, 1.5)),
        "below": found._replace(difference=Interval(-1.0, -1.5, -0.5), win_rate=Interval(0.1, 0.0, 0.2)),
        "contains 0": found._replace(difference=Interval(1.0, -0.1, 2.1)),
        "not significant": found._replace(difference=Interval(1.0, 0.5, 1.5), adjusted_p=0.051),
        "divided": found._replace(difference=Interval(-1.0, -1.5, -0.5)),
        "one category": found._replace(category="Food & Drink", adjusted_p=None),
    }
    page, *_ = written(report._replace(comparisons=tuple(variants.values())), tmp_path)
    rows = [page.comparisons()[number]["row"].get("class") for number in range(len(variants))]
    assert dict(zip(variants, rows, strict=True)) == {
        "above": "above",
        "below": "below",
        "contains 0": None,
        "not significant": None,
        "divided": None,
        "one category": None,
    }


def test_scores_and_pictures_in_the_page_are_those_of_the_report(tmp_path: Path) -> None:
    report = simulated(tmp_path)
    page, _, record = written(report, tmp_path)
    data = page.data()
    assert data["seeds"] == record["results"]["seeds"]
    assert [prompt["text"] for prompt in data["prompts"]] == [
        prompt.text for prompt in report.results.prompts
    ]
    for number, prompt in enumerate(data["prompts"]):
        for model, scores in record["results"]["scores"].items():
            expected = {measure: reward_PS[number] for measure, reward_PS in scores["reward_PS"].items()}
            assert prompt["scores"][model] == expected
            for path, uri in zip(report.pictures[model][number], prompt["pictures"][model], strict=True):
                kind, encoded = uri.split(",")
                assert kind == "data:image/png;base64"
                assert base64.b64decode(encoded) == (tmp_path / path).read_bytes()


def test_points_of_charts_are_those_of_the_comparisons(tmp_path: Path) -> None:
    """Every checkpoint has a point by measure over steps, and by reward in both planes."""
    page, text, record = written(simulated(tmp_path, SERIES), tmp_path)
    points = {
        (one["data-model"], float(one["data-x"]), float(one["data-y"]))
        for one in page.all("path")
        if "mark" in one.get("class", "") and "data-model" in one
    }
    of_base = [one for one in record["comparisons"] if one["against"] == "base" and one["category"] is None]
    means = {(one["model"], one["measure"]): one["mean"]["mean"] for one in of_base}
    rates = {(one["model"], one["measure"]): one["win_rate"]["mean"] for one in of_base if one["win_rate"]}
    for step in STEPS:
        model = f"dmpo at {step}"
        for measure in ("MajorityTaste", "EmojiFidelity", "diversity", "displacement"):
            assert (model, step, means[model, measure]) in points
        assert (model, means[model, "diversity"], means[model, "MinorityTaste"]) in points
        assert (model, means[model, "displacement"], means[model, "MinorityTaste"]) in points
        assert (model, step, rates[model, "EmojiFidelity"]) in points
    assert ("dmpo at 400", 0.0, rates["dmpo at 400", "MajorityTaste"]) in points
    assert ("base", 0.0, record["comparisons"][0]["against_mean"]["mean"]) in points
    assert "No model says which rewards" not in text


def test_no_coordinate_of_a_chart_lies_outside_of_it(tmp_path: Path) -> None:
    _, text, _ = written(simulated(tmp_path, SERIES), tmp_path)
    charts = re.findall(r'<svg viewBox="0 0 (\d+) (\d+)" role="img".*?</svg>', text, re.DOTALL)
    # 6 measures over steps, 4 rewards against each of 2, 2 of the training
    assert len(charts) == 6 + 8 + 2
    for chart in re.finditer(r'<svg viewBox="0 0 ([\d.]+) ([\d.]+)" role="img".*?</svg>', text, re.DOTALL):
        width, height = float(chart[1]), float(chart[2])
        for x, y in re.findall(r'<text [^>]*x="([-\d.]+)" y="([-\d.]+)"', chart[0]):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height
        for x, y in re.findall(r"translate\(([-\d.]+) ([-\d.]+)\)", chart[0]):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height


def test_hostile_text_is_text(tmp_path: Path) -> None:
    """It adds no element and no attribute, wherever it stands, and comes out of the data as it was."""
    prompts = [Prompt(text, text[:40]) for text in HOSTILE]
    models = [
        Evaluated(HOSTILE[0], HOSTILE[1]),
        Evaluated(HOSTILE[1], HOSTILE[2], HOSTILE[0], 10, (HOSTILE[2],)),
    ]
    tame = [Evaluated("base", "a"), Evaluated("other", "b", "c", 10, ("d",))]
    report = simulated(tmp_path, models, prompts=prompts, num_prompts=4)
    report = report._replace(title=HOSTILE[0], verdicts=HOSTILE, manifest={HOSTILE[0]: {"a": HOSTILE[3]}})
    page, text, _ = written(report, tmp_path)
    plain, *_ = written(
        simulated(tmp_path, tame, prompts=[Prompt(str(n), str(n)) for n in range(4)], num_prompts=4)._replace(
            verdicts=("",) * 4, manifest={"a": {"a": ""}}
        ),
        tmp_path,
    )
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert not {name for _, attributes in page.elements for name in attributes if name.startswith("on")}
    assert [prompt["text"] for prompt in page.data()["prompts"]] == list(HOSTILE)
    assert text.count("</script>") == 2


def test_page_asks_for_nothing_and_says_so_to_the_browser(tmp_path: Path) -> None:
    page, text, _ = written(simulated(tmp_path, SERIES), tmp_path)
    links = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href")
    ]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "url(" not in page.raw["style"]
    assert "@import" not in page.raw["style"]
    policy = next(
        one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"
    )
    for name in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.raw[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "style=" not in re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)


def test_verdicts_stand_first(tmp_path: Path) -> None:
    report = simulated(tmp_path)
    _, text, _ = written(report, tmp_path)
    places = [text.index(words) for words in (*report.verdicts, "<table", 'id="cards"', 'id="manifest"')]
    assert places == sorted(places)


def noisy_pictures(folder: Path, count: int, side: int) -> list[str]:
    """PNG files of noise: the worst that can be compressed."""
    generator = np.random.default_rng(1)
    for number in range(count):
        byte_HWC = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(byte_HWC).save(folder / f"{number}.png", compress_level=1)
    return [f"{number}.png" for number in range(count)]


@pytest.mark.slow
def test_page_of_many_large_pictures_stays_below_fifteen_megabytes(tmp_path: Path) -> None:
    """500 prompts, 4 seeds, 3 models, 512 x 512: it shows a part, and says how many."""
    paths = noisy_pictures(tmp_path, 4, 512)
    names = ("base", "dpo", "dmpo")
    pictures = {name: tuple(tuple(paths) for _ in range(500)) for name in names}
    prompts = [Prompt(f"prompt {number}", "ab"[number % 2]) for number in range(500)]
    report = simulated(tmp_path, prompts=prompts, num_prompts=500, num_seeds=4, pictures=pictures)
    page, text, _ = written(report, tmp_path)
    assert 13_000_000 < len(text.encode()) < 15_000_000
    shown = [prompt["number"] for prompt in page.data()["prompts"]]
    (coverage,) = (one for one in page.all("p") if one.get("id") == "coverage")
    assert coverage["data-shown"] == str(len(shown))
    assert coverage["data-all"] == "500"
    assert f"<b>{len(shown)} of 500 prompts</b>" in text
    assert shown[0] == 0
    # evenly: no gap is more than twice the mean of all gaps
    assert np.diff(shown).max() <= 2 * 500 / len(shown) + 1
    first = base64.b64decode(page.data()["prompts"][0]["pictures"]["base"][0].split(",")[1])
    picture = Image.open(io.BytesIO(first))
    assert (picture.format, picture.size) == ("WEBP", (256, 256))


def test_large_picture_is_scaled_down_and_small_one_is_not(tmp_path: Path) -> None:
    Image.new("RGB", (300, 600), "red").save(tmp_path / "large.png")
    Image.new("RGB", (128, 96), "red").save(tmp_path / "small.png")
    (data,) = fit({"m": [["large.png", "small.png"]]}, tmp_path, [0], 10**6).values()
    large, small = (Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) for uri in data["m"])
    assert (large.format, large.size) == ("WEBP", (128, 256))
    assert (small.format, small.size) == ("PNG", (128, 96))
    red, green, blue = large.convert("RGB").getpixel((64, 128))  # type: ignore[misc]
    assert red > 250
    assert max(green, blue) < 5


def test_prompts_are_kept_as_long_as_there_is_room(tmp_path: Path) -> None:
    """What comes out is no longer than what there was room for, whatever the room."""
    paths = noisy_pictures(tmp_path, 1, 8)
    counts = []
    for budget in range(0, 6000, 500):
        found = fit({"a": [paths] * 9, "b": [paths] * 9}, tmp_path, [10] * 9, budget)
        size = len(json.dumps(list(found.values()), separators=(",", ":"))) if found else 0
        assert size <= budget
        counts.append(len(found))
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] > 3


@pytest.mark.parametrize("count", [0, 1, 2, 3, 17, 64, 500])
def test_any_beginning_of_prompts_is_spread_over_all(count: int) -> None:
    """Among the first n of N there is no gap of more than 2 N / n."""
    order = list(spread_out(count))
    assert sorted(order) == list(range(count))
    for length in range(1, count + 1):
        edges = [*sorted(order[:length]), count]
        assert max(np.diff(edges)) <= 2 * count / length + 1


def test_missing_picture_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    report = simulated(tmp_path)
    (tmp_path / report.pictures["dpo"][2][1]).unlink()
    with pytest.raises(ValueError, match=r"cannot read the picture .*pictures.1.2_1\.png"):
        write(report, tmp_path)
    assert not list(tmp_path.glob("report.*"))


def test_report_without_pictures_or_comparisons_is_a_page_as_well(tmp_path: Path) -> None:
    report = simulated(tmp_path)._replace(pictures={}, comparisons=(), verdicts=(), manifest={})
    _, text, _ = written(report, tmp_path)
    assert "No pictures were kept." in text
    assert "<b><bdi>base</bdi></b>" in text


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((0.0, 0.9), (0.0, 0.2, 0.4, 0.6, 0.8)),
        ((100.0, 800.0), (200.0, 400.0, 600.0, 800.0)),
        ((-3e-5, 3e-5), (-2e-5, 0.0, 2e-5)),
        ((5.0,), (4.6, 4.8, 5.0, 5.2, 5.4)),
    ],
)
def test_ticks_are_round_and_lie_within_the_axis(values: tuple[float, ...], ticks: tuple[float, ...]) -> None:
    found = axis("", values)
    assert found.ticks == pytest.approx(ticks, abs=1e-12)
    assert found.low < min(values) <= max(values) < found.high
    assert len({found.label(tick) for tick in found.ticks}) == len(found.ticks)
