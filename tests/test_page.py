"""results/index.html in a real browser, from a file and without a network."""

import json
import re
import shutil

import pytest
from test_results import RISES_THEN_FALLS, make_run

from results import report
from results.pages.site import page
from results.raw import read_runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: chromium)")
NAN = float("nan")
HOSTILE = "</script><script>window.broken = true</script><img src=x onerror='window.broken = true'>"


SOURCES = {
    "algorithms/plain_family/README.md": "# Plain\n\nA dataset in, a policy out.\n",
    "algorithms/plain_family/bc.py": '''"""BC: behaviour cloning.

Somebody, "Cloning", 1989.

Choose it when <b>data</b> is good.
"""
''',
    "algorithms/plain_family/cql.py": '''"""CQL: conservative Q-learning.

Kumar, Zhou, Tucker and Levine, "Conservative Q-Learning for Offline Reinforcement Learning", arXiv 2006.04779.

Choose it when Q explodes.

    python algorithms/offline/cql.py --dataset hopper-medium \\\\
        --alpha 1 2.5
    python algorithms/offline/cql.py --help
"""
''',
    "results/claims/cql.py": '''from results.checks import Claim, end
from results.grid import Entry

bc, later = (Entry(name, "hopper-expert", "--updates 3000", "x", "claim") for name in ("bc", "later"))
CLAIM = Claim(
    title="CQL ends high",
    paper="CQL (arXiv 2006.04779) says so.",
    runs=[bc, later],
    checks={
        "CQL ends above BC": end(bc) > end(bc) + 1000,
        "CQL ends above what comes later": end(bc) > end(later),
    },
    finding="It was found to be so.",
)
''',
    "results/parity/cql-corl.json": json.dumps(
        {
            "": {"reference": "a/b", "file": "c.py", "commit": "1234567890", "dtype": "float64", "agrees": True}
            | {"after": {"1": {"losses": {"q": 1e-13}, "parameters": {"q": 1e-14}}}, "deviations": {}, "note": ""}
        }
    ),
    "results/published.json": json.dumps(
        {"rows": [{"dataset": "d", "tasks": "default", "algorithm": "cql", "mean": 7, "sd": 1.5, "source": "x"}]}
    ),
    "results/speed.json": json.dumps(
        {
            "hardware": {"cores": 2},
            "cases": [
                {"algorithm": "cql", "shape": "hopper", "lanes": 8, "updates_per_s": {"median": 12.5}}
                | {"hidden_dims": [256], "batch_size": 256, "memory_mib": 1, "compile_s": 1, "mflop_per_update": 1}
                | {"share": {"median": 0.8}}
            ],
        }
    ),
}  # fmt: skip
"""Two algorithms, and what is known of one."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A page of six rows: two datasets, a sweep, a diverged lane, a hostile command."""
    root = tmp_path_factory.mktemp("site")
    make_run(root, "td3_bc", "hopper-medium", RISES_THEN_FALLS)
    low = [[[1, 1], [2, 2], [3, 3]]] * 4
    bc = make_run(root, "bc", "hopper-medium", low, diverged={"1": 500})
    record = json.loads((bc / "run.json").read_text())
    (bc / "run.json").write_text(json.dumps(record | {"command": HOSTILE}))
    make_run(root, "bc", "hopper-expert", [[[80, 80]], [[90, 90]]], name="claim-x-3k")
    make_run(root, "iql", "hopper-expert", [[[NAN, NAN]], [[7, 9]]])
    make_run(root, "cql", "hopper-medium", RISES_THEN_FALLS, swept={"alpha": [1.0, 1.0, 2.5, 2.5]})
    for name, text in SOURCES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    assert report.main([], root) == 0
    return (root / "results" / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser, site):
    """The page, loaded; at the end nothing may have been logged as an error or asked for over a network."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="light")
    tab, errors, asked = context.new_page(), [], []
    tab.set_default_timeout(300_000)  # milliseconds: a machine may be slow
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(site)
    yield tab
    assert errors == [] and all(url.startswith("file:") for url in asked)
    context.close()


def column(tab, n: int) -> list[str]:
    return [text.strip() for text in tab.locator(f"#rows tr td:nth-child({n})").all_inner_texts()]


@needs_chromium
def test_the_page_shows_every_row_the_best_first(tab):
    assert column(tab, 1) == ["bc", "cql", "td3_bc", "cql", "iql †", "bc †"]
    assert column(tab, 4) == ["85.0 ± 5.0", "57.0 ± 25.0", "37.0 ± 26.9", "17.0 ± 5.0", "8.0 ± 0.0", "3.0 ± 0.0"]
    assert tab.locator("#count").inner_text() == "6 of 6 rows"
    assert tab.evaluate("window.broken") is None


@needs_chromium
def test_the_page_is_sorted_by_a_heading_and_back(tab):
    tab.locator("th").get_by_role("button", name="Algorithm").click()
    assert column(tab, 1) == ["bc", "bc †", "cql", "cql", "iql †", "td3_bc"]
    assert tab.locator("th").first.get_attribute("aria-sort") == "ascending"
    tab.locator("th").get_by_role("button", name="Algorithm").click()
    assert column(tab, 1)[0] == "td3_bc" and tab.locator("th").first.get_attribute("aria-sort") == "descending"


@needs_chromium
def test_the_page_is_filtered_by_words_and_lists(tab):
    tab.get_by_label("Dataset", exact=True).select_option("hopper-expert")
    assert column(tab, 1) == ["bc", "iql †"] and tab.locator("#count").inner_text() == "2 of 6 rows"
    tab.get_by_label("Runs", exact=True).select_option("claim")
    assert column(tab, 1) == ["bc"]
    tab.get_by_label("Runs", exact=True).select_option("")
    tab.get_by_label("Dataset", exact=True).select_option("")
    tab.get_by_label("Search", exact=True).fill("cql alpha=2.5")
    assert column(tab, 3) == ["alpha=2.5 · benchmark"]
    tab.get_by_label("Search", exact=True).fill("nothing like it")
    assert tab.get_by_text("No run fits these filters.").is_visible()


@needs_chromium
def test_the_detail_view_has_every_lane_and_how_it_was_made(tab):
    tab.locator("#rows button", has_text="td3_bc").click()
    dialog = tab.get_by_role("dialog")
    assert dialog.locator("h2").inner_text() == "td3_bc on hopper-medium"
    assert dialog.locator("polyline.lane").count() == 4 and dialog.locator("polyline.mean").count() == 1
    text = dialog.inner_text()
    assert "seed 100: 12.0, seed 101: 22.0" in text and "2 × cpu on 2 cores" in text
    assert "python algorithms/offline/td3_bc.py --dataset hopper-medium" in text and "dataset mean" in text
    assert tab.url.endswith("#td3_bc%2Fhopper-medium%2Fbenchmark")
    dialog.get_by_role("button", name="Close").click()
    tab.wait_for_function("!location.hash")
    assert not dialog.is_visible()


@needs_chromium
def test_the_algorithms_stand_by_family_with_what_is_known_of_them(tab, site):
    tab.get_by_role("button", name="Algorithms").click()
    assert not tab.locator("#rows").is_visible()
    family = tab.locator("#families")
    assert family.locator("h2").all_inner_texts() == ["plain family"]
    assert "A dataset in, a policy out. 2 algorithms; claims: 1 not seen, 1 no claim yet." in family.inner_text()
    tab.locator("#algorithm-cql summary").click()
    tab.wait_for_function("location.hash === '#algorithm-cql'")
    text = tab.locator("#algorithm-cql").inner_text()
    assert "CQL: conservative Q-learning" in text and "Q explodes" in text and "It was found to be so." in text
    assert "python algorithms/offline/cql.py --dataset hopper-medium --alpha 1 2.5" in text
    assert "no: CQL ends above BC (85.0 > 1,085.0)" in text
    assert "not run yet: CQL ends above what comes later" in text
    assert "agrees to 1e-13 with a/b at 1234567" in text and "d, default: 7 ± 1.5 (x)" in text
    assert "12.5 updates/s with 8 lanes (80 % of the limit)" in text
    assert tab.locator("#algorithm-cql a").get_attribute("href") == "https://arxiv.org/abs/2006.04779"
    tab.locator("#algorithm-cql li button").click()
    assert tab.get_by_role("dialog").locator("h2").inner_text() == "bc on hopper-expert"
    assert tab.get_by_role("dialog").locator(".lane").count() == 2
    tab.get_by_role("dialog").get_by_role("button", name="Close").click()
    tab.get_by_role("button", name="All 2 rows of its runs").click()
    assert column(tab, 1) == ["cql", "cql"] and not family.is_visible()


@needs_chromium
def test_an_algorithm_is_found_by_words_and_by_a_link(tab, site):
    tab.get_by_role("button", name="Algorithms").click()
    tab.get_by_label("Find", exact=True).fill("cloning 1989")
    assert tab.locator("details strong").all_inner_texts() == ["BC"]
    tab.goto("about:blank")
    tab.goto(f"{site}#algorithm-bc")
    assert "<b>data</b> is good" in tab.locator("#algorithm-bc").inner_text()
    tab.set_viewport_size({"width": 360, "height": 740})
    tab.locator("#algorithm-cql summary").click()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360


@needs_chromium
def test_the_page_works_by_keyboard(tab):
    """By Tab alone: a search, a column's sorting, and a run's details."""

    def go_to(locator) -> None:
        for _ in range(60):
            tab.keyboard.press("Tab")
            if locator.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError("Tab does not lead there")

    go_to(tab.get_by_label("Search", exact=True))
    tab.keyboard.type("iql")
    header = tab.locator("th", has=tab.locator("button")).first
    go_to(header.locator("button"))
    before = header.get_attribute("aria-sort")
    tab.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") != before
    go_to(tab.locator("#rows button").first)
    tab.keyboard.press("Enter")
    dialog = tab.get_by_role("dialog")
    assert dialog.is_visible() and "lane 0 (seed 100) has no finite return" in dialog.inner_text()
    tab.keyboard.press("Escape")
    assert not dialog.is_visible()


@needs_chromium
def test_a_link_opens_its_run(tab, site):
    tab.goto("about:blank")
    tab.goto(f"{site}#cql%2Fhopper-medium%2Fbenchmark%3Falpha%3D1")
    assert tab.get_by_role("dialog").locator("h2").inner_text() == "cql alpha=1 on hopper-medium"


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_light_or_dark_as_asked_for_and_can_be_switched(scheme, tab):
    def dark():
        red, green, blue = map(int, re.findall(r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor")))
        return red + green + blue < 300

    tab.emulate_media(color_scheme=scheme)
    assert dark() == (scheme == "dark")
    tab.get_by_role("button", name="Switch between light and dark").click()
    assert dark() != (scheme == "dark")


@needs_chromium
def test_the_page_fits_a_phone(tab):
    tab.set_viewport_size({"width": 360, "height": 740})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    tab.locator("#rows button", has_text="td3_bc").click()
    box = tab.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    assert tab.evaluate(
        "document.getElementById('detail').scrollWidth <= document.getElementById('detail').clientWidth"
    )
    letters = tab.locator("dialog svg text").first.bounding_box()["height"]
    assert letters > 9, "the labels of the curves can be read"


def test_no_text_of_a_run_ends_the_script(tmp_path):
    run = make_run(tmp_path, "bc", "hopper-medium", RISES_THEN_FALLS)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"command": HOSTILE}))
    text = page(read_runs(tmp_path, "*")[0], tmp_path)
    assert text.count("</script>") == page([], tmp_path).count("</script>") and "onerror" in text
