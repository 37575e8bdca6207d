"""The page in a real browser, headless: it opens, filters, follows links and keys, and no answer can make it do more.

Needs Chromium with its driver (Debian: `apt-get install chromium chromium-driver`) and selenium; skipped without.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.answered import answered, gold, other, samples
from vlmamba_eval.report.view import write_page
from vlmamba_eval.text import natural

selenium = pytest.importorskip("selenium", reason="selenium is not installed: pip install selenium")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if not BROWSER or not DRIVER:
    pytest.skip("no Chromium with its driver here: apt-get install chromium chromium-driver", allow_module_level=True)

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    "<svg onload='window.hacked = 1'>{{ window.hacked }}\u202egnp.exe\u2066 javascript:window.hacked=1"
)
POPE = len(samples("pope").samples)
IDS = sorted((sample.id for sample in samples("pope").samples), key=natural)  # as the page lists them
SAMPLES = {sample.id: sample for sample in samples("pope").samples}
# A hostile answer holds no "no", which POPE reads as yes: it is wrong if no is right. The second is not answered.
HOSTILE_AT = next(i for i, key in enumerate(IDS) if i > 10 and gold(SAMPLES[key]).lower() == "no")
A_WRONG, B_WRONG = (4, 9), (HOSTILE_AT, 30, 35)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a page of two models on two benchmarks, one with a hostile name and hostile answers."""
    out = tmp_path_factory.mktemp("page")
    folders = []
    for task in ("pope", "mme"):
        folders.append(answered(out, "first", lambda i, s: other(s) if place(i, s) in A_WRONG else gold(s), task=task))
    for task in ("pope", "mme"):
        folders.append(
            answered(out, "<img src=x onerror='window.hacked=1'>", task=task, answer=second)  # the name of a model
        )
    return write_page(folders, out / "report.html").as_uri()


def place(i: int, sample: Any) -> int:
    """A question's place on the page, for POPE; for other tasks in the file."""
    return IDS.index(sample.id) if sample.id in SAMPLES else i


def second(i: int, sample: Any) -> str | None:
    i = place(i, sample)
    return HOSTILE if i == B_WRONG[0] else None if i == B_WRONG[1] else other(sample) if i in B_WRONG else gold(sample)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
        "--window-size=1280,900", f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """What a reader does with the page."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        self.address = address
        driver.get("about:blank")
        driver.get(address)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, css: str) -> list[Any]:
        return self.driver.find_elements("css selector", css)

    def one(self, css: str) -> Any:
        return self.driver.find_element("css selector", css)

    @property
    def count(self) -> str:
        return self.one("#count").text

    @property
    def shown(self) -> str:
        """The id of the question in the detail."""
        return self.one("#detail-title").text

    def choose(self, select: str, text: str) -> None:
        from selenium.webdriver.support.ui import Select

        Select(self.one(select)).select_by_visible_text(text)

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def preset(self, text: str) -> None:
        next(button for button in self.all("#presets button") if button.text == text).click()

    @property
    def listed(self) -> list[str]:
        """The ids in the part of the list that is drawn."""
        return [item.text for item in self.all("#list .item .id")]

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def opened(chromium: Any, page: str) -> Iterator[Page]:
    found = Page(chromium, page)
    yield found
    assert found.errors() == []
    assert found.run("return window.hacked") is None


def test_it_opens_with_all_questions_and_draws_only_those_in_sight(opened: Page) -> None:
    assert opened.count == f"{POPE} of {POPE} questions" or "questions" in opened.count
    opened.choose("#task", "POPE")
    assert opened.count == f"{POPE} of {POPE} questions"
    assert 5 < len(opened.all("#list .item")) < 60
    assert opened.run("return document.getElementById('space').style.height") == f"{56 * POPE}px"


def test_a_right_and_b_wrong_shows_exactly_those(opened: Page) -> None:
    opened.choose("#task", "POPE")
    opened.preset("A right, B wrong")
    assert opened.listed == [IDS[i] for i in B_WRONG if i != B_WRONG[1]]  # what B did not answer is not wrong
    opened.preset("B right, A wrong")
    assert opened.listed == [IDS[i] for i in A_WRONG]
    opened.preset("runs differ")
    assert opened.listed == [IDS[i] for i in sorted((*A_WRONG, *B_WRONG))]
    opened.preset("all")
    opened.choose("#run-filters select[data-run='1']", "no answer")
    assert opened.listed == [IDS[B_WRONG[1]]]


def test_groups_and_words_narrow_the_list(opened: Page) -> None:
    opened.choose("#task", "POPE")
    group = samples("pope").samples[-1].groups[0]
    opened.choose("#group", group)
    inside = [sample for sample in samples("pope").samples if group in sample.groups]
    assert opened.count == f"{len(inside)} of {POPE} questions"
    word = inside[0].question.split()[-4]
    opened.one("#search").send_keys(word)
    texts = [samples("pope").task.prompt(sample) + sample.id for sample in inside]
    assert opened.count.startswith(str(sum(word.lower() in text.lower() for text in texts)))
    opened.one("#search").send_keys("no such word")
    assert opened.count.startswith("0 of")
    assert "Take a filter away" in opened.one("#nothing").text


def test_the_detail_shows_prompt_answers_and_verdicts_side_by_side(opened: Page) -> None:
    opened.choose("#task", "POPE")
    opened.preset("B right, A wrong")
    sample = SAMPLES[IDS[A_WRONG[0]]]
    text = opened.one("#detail").text
    assert opened.shown == sample.id
    assert samples("pope").task.prompt(sample).split("\n")[1] in text
    cells = [[cell.text for cell in row.find_elements("css selector", "td")] for row in opened.all("#detail tbody tr")]
    assert [row[1] for row in cells] == [other(sample), gold(sample)]
    assert "wrong" in cells[0][0]
    assert "right" in cells[1][0]
    assert opened.one("#detail .picture img").get_property("naturalWidth") > 0


def test_a_hostile_answer_and_name_are_read_as_text(opened: Page) -> None:
    opened.choose("#task", "POPE")
    opened.one("#search").send_keys("window.hacked = 1")
    assert opened.listed == [IDS[B_WRONG[0]]]
    text = opened.one("#detail").text
    assert "<script>window.hacked = 1</script>" in text
    assert "{{ window.hacked }}" in text
    assert "U+202E" in text
    assert opened.all("#detail script") == []
    assert "<img src=x" in opened.one("h1").text
    time.sleep(0.2)  # for whatever would load


def test_keys_move_through_the_list(opened: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    opened.choose("#task", "POPE")
    opened.one("#list").click()
    opened.run("document.getElementById('list').focus()")
    opened.press(Keys.HOME)
    opened.press("j", "j")
    assert opened.shown == IDS[2]
    opened.press("k")
    assert opened.shown == IDS[1]
    opened.press(Keys.END)
    assert opened.shown == IDS[-1]
    assert opened.one("[aria-selected='true'] .id").text == IDS[-1]
    active = opened.one("#list").get_attribute("aria-activedescendant")
    assert opened.one(f"#{active} .id").text == IDS[-1]
    opened.press("/")
    assert opened.run("return document.activeElement.id") == "search"
    opened.press("zzz", Keys.ESCAPE)
    assert opened.run("return document.activeElement.id") == "list"
    opened.press("?")
    assert opened.run("return document.getElementById('help').open")
    opened.press(Keys.ESCAPE)


def test_the_address_names_the_question_and_leads_back_to_it(opened: Page, chromium: Any) -> None:
    opened.choose("#task", "POPE")
    opened.preset("A right, B wrong")
    opened.press("j")
    hash_of = opened.run("return location.hash")
    assert hash_of == f"#q/pope/{quote(IDS[B_WRONG[2]], safe='')}?better=0%3E1"
    again = Page(chromium, f"{opened.address}{hash_of}")
    assert again.shown == IDS[B_WRONG[2]]
    assert again.listed == [IDS[B_WRONG[0]], IDS[B_WRONG[2]]]
    far = Page(chromium, f"{opened.address}#q/pope/{quote(IDS[-1], safe='')}")
    assert far.shown == IDS[-1]
    assert IDS[-1] in far.listed


@pytest.mark.parametrize("bad", ["#q/nothing/1", "#q/pope/%", "#q/pope/nothing", "#q/", "#q/pope/1?runs=x,y&group=z"])
def test_a_broken_link_opens_the_page_all_the_same(chromium: Any, page: str, bad: str) -> None:
    opened = Page(chromium, page + bad)
    assert "questions" in opened.count
    assert opened.errors() == []


def test_the_links_of_a_comparison_lead_to_its_questions(opened: Page) -> None:
    for link in opened.all("#compared a"):
        opened.run("arguments[0].click()", link)
        time.sleep(0.1)
        assert opened.count.startswith(f"{link.text.split()[0]} of")  # `2 only A right`


def test_scrolling_far_draws_what_is_there(opened: Page) -> None:
    opened.choose("#task", "POPE")
    opened.run("document.getElementById('list').scrollTop = 1e7")
    time.sleep(0.2)
    assert opened.listed[-1] == IDS[-1]


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(opened: Page, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    opened.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        opened.run("for (const d of document.querySelectorAll('details')) d.open = true")
        assert opened.run("return document.documentElement.scrollWidth") <= width, opened.run(WIDE, width)
        if width < 600:
            opened.all("#list .item")[1].click()
            assert opened.one("#detail").is_displayed()
            assert not opened.one("#list").is_displayed()
            opened.one("#detail .back").click()
            assert opened.one("#list").is_displayed()
    finally:
        opened.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(opened: Page, scheme: str) -> None:
    """The contrast of every text with its ground is at least 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    opened.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        low = opened.run(CONTRAST)
        assert low == [], json.dumps(low[:5], indent=1)
    finally:
        opened.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgba = (css) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = css; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data]; };
const light = ([r, g, b]) => {
  const f = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
const ground = (node) => { for (let n = node; n; n = n.parentElement) {
  const c = rgba(getComputedStyle(n).backgroundColor);
  if (c[3] > 250) return c; } return [255, 255, 255, 255]; };
const low = [];
for (const node of document.querySelectorAll('body *')) {
  const own = [...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim());
  if (!own || !node.checkVisibility() || node.closest('script, style, svg, :disabled')) continue;
  const a = light(rgba(getComputedStyle(node).color)), b = light(ground(node));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) low.push([node.tagName, node.className, node.textContent.slice(0, 30), ratio]);
}
return low;
"""


def test_every_control_has_a_name(opened: Page) -> None:
    unnamed = opened.run(
        "return [...document.querySelectorAll('button, select, input, [role=listbox], [role=region], dialog')]"
        ".filter((n) => !(n.textContent.trim() && n.tagName === 'BUTTON') && !n.getAttribute('aria-label')"
        " && !n.closest('label')).map((n) => n.outerHTML.slice(0, 80))"
    )
    assert unnamed == []


WIDE = """
return [...document.querySelectorAll('body *')]
  .filter((n) => n.getBoundingClientRect().right > arguments[0] + 1 && !n.closest('.scroll, .bar nav'))
  .map((n) => `${n.tagName}.${n.className} in ${n.closest('section')?.id}: ${n.textContent.slice(0, 40)}`).slice(0, 6);
"""
