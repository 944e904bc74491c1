"""The page of a report in headless Chromium, without a network."""

import base64
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from alignkit.evaluation.report import write
from alignkit.evaluation.results import Prompt
from tests.reports import SERIES, simulated

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
# set where a missing browser is a failure, such as in CI
REQUIRED = "ALIGNKIT_REQUIRE_CHROMIUM"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER) and not os.environ.get(REQUIRED),
        reason="needs Chromium and its driver: apt-get install chromium chromium-driver",
    ),
]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
HOSTILE = "</script><img src=x onerror=document.title='pwned'>\"' \u0634\u0645\u0633 " + "very long " * 200


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a base, three checkpoints and another model; one of its prompts is hostile."""
    folder = tmp_path_factory.mktemp("report")
    named = simulated(folder, SERIES, num_prompts=20, num_seeds=3).results.prompts
    prompts = [*named[:-1], Prompt(HOSTILE, "Food & Drink")]
    write(simulated(folder, SERIES, prompts=prompts, num_prompts=20, num_seeds=3), folder)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    assert CHROMIUM, "there is no Chromium: apt-get install chromium chromium-driver"
    assert DRIVER, "there is no driver of Chromium: apt-get install chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.execute_cdp_cmd("Network.enable", {})
    # whatever asks for something elsewhere fails, and its failure is in the log
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, record: Path) -> webdriver.Chrome:
    browser.get((record / "report.html").as_uri())
    return browser


def figures(record: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((record / "report.json").read_text(encoding="utf-8"))
    return report


def cards(page: webdriver.Chrome) -> list[dict[str, Any]]:
    """What the cards say that are visible."""
    found: list[dict[str, Any]] = page.execute_script(
        """const cards = [...document.querySelectorAll(".card")].filter((card) => card.checkVisibility());
        const column = (cell) => [cell.dataset.column, cell.dataset.value];
        return cards.map((card) => ({
            ...card.dataset,
            text: card.querySelector("h3").textContent,
            models: [...card.querySelectorAll("figcaption")].map((caption) => caption.textContent),
            pictures: [...card.querySelectorAll("img")].map((image) => image.src),
            about: card.querySelector(".about").textContent,
            scores: Object.fromEntries([...card.querySelectorAll("tr")].map((row) => [
                row.dataset.measure,
                Object.fromEntries([...row.cells].slice(1).map(column)),
            ])),
        }))"""
    )
    return found


def show_all(page: webdriver.Chrome) -> list[dict[str, Any]]:
    more = page.find_element(By.ID, "more")
    while more.is_displayed():
        page.execute_script("arguments[0].click()", more)
    return cards(page)


def choose(page: webdriver.Chrome, name: str, value: str) -> None:
    Select(page.find_element(By.ID, name)).select_by_value(value)


def test_page_opens_without_a_request_or_an_error(page: webdriver.Chrome) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    # the browser's own first page asks for chrome:// things
    asked = [one["request"]["url"] for one in sent if one["documentURL"] == page.current_url]
    assert any(url.startswith("file:") for url in asked)
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    loaded = page.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert all(name.startswith("data:") for name in loaded)
    assert page.get_log("browser") == []
    assert page.title == page.find_element(By.TAG_NAME, "h1").text


def test_policy_of_the_page_forbids_connections_and_foreign_scripts(page: webdriver.Chrome) -> None:
    """Both are tried from within; Chromium says in its log what it refused."""
    refused = page.execute_async_script(
        """const done = arguments[0];
        const seen = [];
        document.addEventListener("securitypolicyviolation", (event) => seen.push(event.effectiveDirective));
        const script = document.createElement("script");
        script.textContent = "document.title = 'pwned'";
        document.body.append(script);
        fetch("data:text/plain,a").catch(() => null);
        setTimeout(() => done(seen), 200);"""
    )
    assert sorted(refused) == ["connect-src", "script-src-elem"]
    assert page.title != "pwned"
    page.get_log("browser")


def test_all_pictures_show(page: webdriver.Chrome, record: Path) -> None:
    """Each is the file of its model, prompt and seed."""
    shown, report = show_all(page), figures(record)
    assert len(shown) == 20 * 3
    widths = page.execute_async_script(
        """const done = arguments[0];
        const images = [...document.querySelectorAll(".card img")];
        Promise.all(images.map((image) => image.decode()))
            .then(() => done(images.map((image) => image.complete && image.naturalWidth)));"""
    )
    assert widths == [32] * (20 * 3 * 2)
    seeds = report["results"]["seeds"]
    for card in shown:
        for model, uri in zip(card["models"], card["pictures"], strict=True):
            path = report["pictures"][model][int(card["prompt"])][seeds.index(int(card["seed"]))]
            assert base64.b64decode(uri.split(",")[1]) == (record / path).read_bytes()


def test_cards_say_the_scores_of_the_json(page: webdriver.Chrome, record: Path) -> None:
    report = figures(record)["results"]
    for left, right in (("base", "inversion"), ("inversion", "dmpo at 200")):
        choose(page, "left", left)
        choose(page, "right", right)
        shown = show_all(page)
        assert len(shown) == 20 * 3
        for card in shown:
            prompt, seed = int(card["prompt"]), report["seeds"].index(int(card["seed"]))
            assert card["models"] == [left, right]
            assert card["text"] == report["prompts"][prompt]["text"]
            assert card["about"] == f"{report['prompts'][prompt]['category']}, seed {card['seed']}"
            for measure, values in card["scores"].items():
                own, other = (
                    report["scores"][name]["reward_PS"][measure][prompt][seed] for name in (right, left)
                )
                expected = {"left": other, "right": own, "difference": own - other}
                assert {column: float(value) for column, value in values.items()} == expected


def test_order_follows_the_difference_of_the_chosen_measure(page: webdriver.Chrome) -> None:
    shown = [float(card["difference"]) for card in show_all(page)]
    assert shown == sorted(shown, reverse=True)
    assert shown[0] > shown[-1]
    choose(page, "order", "least")
    choose(page, "measure", "EmojiRecognition")
    again = show_all(page)
    differences = [float(card["scores"]["EmojiRecognition"]["difference"]) for card in again]
    assert differences == [float(card["difference"]) for card in again]
    assert differences == sorted(differences)
    assert sorted(differences) != sorted(shown)
    choose(page, "order", "prompt")
    numbers = [(int(card["prompt"]), int(card["seed"])) for card in show_all(page)]
    assert numbers == sorted(numbers)


def test_filters_leave_what_they_say(page: webdriver.Chrome, record: Path) -> None:
    """Of EmojiFidelity every first seed is a tie; the other two are won by the later model."""
    everything = {(card["prompt"], card["seed"]) for card in show_all(page)}
    choose(page, "measure", "EmojiFidelity")
    by_winner = {}
    for winner in ("left", "right", "tie"):
        choose(page, "winner", winner)
        by_winner[winner] = show_all(page)
        assert all(card["winner"] == winner for card in by_winner[winner])
    assert {card["seed"] for card in by_winner["tie"]} == {"1000"}
    assert [len(by_winner[winner]) for winner in ("left", "right", "tie")] == [0, 40, 20]
    choose(page, "left", "inversion")
    choose(page, "right", "base")
    choose(page, "winner", "left")
    assert len(show_all(page)) == 40

    choose(page, "winner", "all")
    categories = [
        option.get_attribute("value") for option in Select(page.find_element(By.ID, "category")).options
    ]
    assert categories == ["all", "=Animals & Nature", "=Food & Drink"]
    kept = []
    for category in categories[1:]:
        choose(page, "category", str(category))
        shown = show_all(page)
        assert all(card["about"].startswith(str(category)[1:]) for card in shown)
        kept += [(card["prompt"], card["seed"]) for card in shown]
    assert set(kept) == everything
    assert len(kept) == len(everything)

    choose(page, "category", "all")
    asked = figures(record)["results"]["prompts"][4]["text"]
    page.find_element(By.ID, "search").send_keys(asked.upper())
    shown = show_all(page)
    assert {card["text"] for card in shown if asked == card["text"]} == {asked}
    assert all(asked in card["text"] for card in shown)
    assert len(shown) < len(everything)
    page.find_element(By.ID, "search").send_keys("no such prompt")
    assert show_all(page) == []
    assert page.find_element(By.ID, "count").text.startswith("0 of 0 pairs")


def test_headings_sort_tables_and_say_how(page: webdriver.Chrome) -> None:
    """Numbers come largest first, texts in their order; what has no figure stays last both ways."""
    table = page.find_element(By.CSS_SELECTOR, "table.comparisons")
    heads = table.find_elements(By.CSS_SELECTOR, "thead th")

    def column(name: str) -> list[str]:
        cells = table.find_elements(By.CSS_SELECTOR, f"tbody td[data-column='{name}']")
        return [cell.get_attribute("data-value") or "" for cell in cells]

    def click(words: str) -> WebElement:
        head = next(head for head in heads if head.text.strip() == words)
        head.find_element(By.TAG_NAME, "button").click()
        return head

    untouched = column("measure")
    assert click("difference").get_attribute("aria-sort") == "descending"
    values = column("difference")
    assert values[-1] == ""
    assert [float(value) for value in values[:-1]] == sorted(map(float, values[:-1]), reverse=True)
    assert click("difference").get_attribute("aria-sort") == "ascending"
    values = column("difference")
    assert values[-1] == ""
    assert [float(value) for value in values[:-1]] == sorted(map(float, values[:-1]))
    assert column("measure") != untouched
    assert click("measure").get_attribute("aria-sort") == "ascending"
    assert column("measure") == sorted(untouched, key=str.lower)
    assert [head.get_attribute("aria-sort") for head in heads].count("ascending") == 1


def test_hostile_prompt_is_shown_and_not_run(page: webdriver.Chrome) -> None:
    page.find_element(By.ID, "search").send_keys("onerror")
    shown = cards(page)
    assert {card["text"] for card in shown} == {HOSTILE}
    assert page.title != "pwned"
    assert page.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    assert page.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_page_fits_its_window_and_is_not_blank(page: webdriver.Chrome, width: int, scheme: str) -> None:
    """Nothing is wider than the window, no word of a chart is cut off, and pictures are there."""
    screen = {"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.execute_script("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    narrowest = (
        "return Math.min(...[...document.querySelectorAll('#manifest td')].map((one) => one.offsetWidth))"
    )
    assert page.execute_script(narrowest) >= 120
    cut = page.execute_script(
        """return [...document.querySelectorAll(".charts svg text")].filter((text) => {
            const word = text.getBoundingClientRect();
            const chart = text.ownerSVGElement.getBoundingClientRect();
            const across = chart.left - 1 <= word.left && word.right <= chart.right + 1;
            return !(across && chart.top - 1 <= word.top && word.bottom <= chart.bottom + 1);
        }).map((text) => text.textContent)"""
    )
    assert cut == []
    page.execute_script("document.getElementById('cards').scrollIntoView()")
    shot = Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("RGB")
    byte_HWC = np.asarray(shot).astype(int)
    assert len(np.unique(byte_HWC.reshape(-1, 3), axis=0)) > 200
    colourful = (byte_HWC.max(2) - byte_HWC.min(2) > 80).mean()
    assert colourful > 0.02
    paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
