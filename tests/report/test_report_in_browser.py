"""Pages in a real browser, opened from a disk: sliders, hover, keys and sizes work, and nothing is complained of.

The browser is Chromium with its driver. Where there is none these tests are skipped, but not in continuous integration.
"""

import shutil

import numpy as np
import pytest

from tests.helpers import reports
from tests.helpers.requirements import missing
from tim_jax.report import ablation_page, run_page
from tim_jax.report.reading import Folder

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    paths = [next(filter(None, map(shutil.which, names)), None) for names in (BROWSERS, ("chromedriver",))]
    if None in paths:
        missing("there is no Chromium with chromedriver (on Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for flag in (*FLAGS, "--window-size=1280,900", f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(paths[1]))
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page_of(tmp_path_factory):
    """{kind: the path of a page}, in folders whose names have to be written with care."""
    root = tmp_path_factory.mktemp("pages") / "a folder & more"
    root.mkdir()
    rng = np.random.default_rng(0)
    reports.undrawn_run(root / "run", rng)
    drawn = reports.drawn(rng)
    made = {"run": run_page.make(Folder(root / "run"), drawn, "")}
    reports.ablation(root / "ablation", rng)
    made["ablation"] = ablation_page.make(Folder(root / "ablation"), root / "ablation.html")
    for kind, text in made.items():
        (root / f"{kind}.html").write_text(text)
    return {kind: root / f"{kind}.html" for kind in made}


@pytest.fixture
def opened(browser, page_of):
    """Opens a page, and in the end looks whether the browser has complained of anything."""

    def open_(kind):
        browser.get(page_of[kind].as_uri())
        return browser

    browser.get_log("browser")
    yield open_
    assert browser.get_log("browser") == []


def run(browser, script, *arguments):
    return browser.execute_script(script, *arguments)


def hover(browser, selector, across=0.5):
    """Moves the pointer over an element, at a share of its width; returns what the page then says of it."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    element = browser.find_element(By.CSS_SELECTOR, selector)
    run(browser, "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    where, said = int((across - 0.5) * element.size["width"]), ""
    for _ in range(5):  # the end of the scrolling, which is late on a busy machine, takes away what is said
        for shift in (0, 1):
            move = ActionChains(browser, duration=50).move_to_element_with_offset(element, where + shift, 0)
            move.pause(0.1).perform()
        said = run(browser, "const tip = document.getElementById('tip'); return tip.hidden ? '' : tip.innerText")
        if said:
            break
        ActionChains(browser, duration=50).move_to_element(browser.find_element(By.TAG_NAME, "h1")).perform()
        run(browser, "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    return said


def key(browser, selector, *keys):
    from selenium.webdriver.common.by import By

    element = browser.find_element(By.CSS_SELECTOR, selector)
    run(browser, "arguments[0].focus()", element)
    element.send_keys(*keys)


@pytest.mark.parametrize("kind", ["run", "ablation"])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("phone", [False, True])
def test_a_page_is_whole_and_fits(kind, dark, phone, opened, browser):
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    if phone:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    try:
        opened(kind)
        charts = run(browser, "return [...document.querySelectorAll('[data-component=chart]')].length")
        drawn = run(browser, "return [...document.querySelectorAll('.plot svg')].length")
        assert drawn >= charts >= 2, "every chart is drawn"
        width = run(browser, "return [document.documentElement.scrollWidth, window.innerWidth]")
        assert width[0] <= width[1], "nothing is wider than the page but what scrolls by itself"
        broken = "return [...document.images].filter((image) => !image.complete || !image.naturalWidth).length"
        assert run(browser, broken) == 0
        ink, paper = run(browser, "const of = getComputedStyle(document.body); return [of.color, of.backgroundColor]")
        brightness = [sum(map(int, colour[4:-1].split(","))) for colour in (ink, paper)]
        assert (brightness[0] > brightness[1]) == dark and abs(brightness[0] - brightness[1]) > 400
        loaded = run(browser, "return performance.getEntriesByType('resource').map((each) => each.name)")
        assert [name for name in loaded if not name.startswith("data:")] == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_slider_and_the_sampler_change_the_pictures(opened, browser):
    from selenium.webdriver.common.keys import Keys

    opened("run")
    look = """const part = document.querySelector('#samples [data-component]');
        return [[...part.querySelectorAll('.tiles img')].map((image) => image.src), part.querySelector('output').value,
            part.querySelector('img').alt, part.querySelector('.steps').getAttribute('aria-valuetext'),
            JSON.parse(part.querySelector('script').textContent)]"""
    shown, told, alt, spoken, data = run(browser, look)
    assert shown == data["images"][0][2] and told == "4 steps, 4 evaluations"
    key(browser, "#samples .steps", Keys.HOME)
    shown, told, alt, spoken, _ = run(browser, look)
    assert shown == data["images"][0][0] and told == "1 step, 1 evaluation" and spoken == "1 step"
    key(browser, "#samples .steps", Keys.ARROW_RIGHT)
    key(browser, "#samples [name=sampler]", Keys.ARROW_RIGHT)
    shown, told, alt, spoken, _ = run(browser, look)
    assert shown == data["images"][1][1] and told == "2 steps, 4 evaluations" and alt == "zero, 2 steps, heun"


def test_trajectories_are_chosen_by_their_steps(opened, browser):
    from selenium.webdriver.common.keys import Keys

    opened("run")
    seen = "return [...document.querySelectorAll('#trajectories [data-choice]')].map((part) => part.hidden)"
    assert run(browser, seen) == [True, False]
    key(browser, "#trajectories [name=path]:checked", Keys.ARROW_LEFT)
    assert run(browser, seen) == [False, True]


def test_pointing_at_a_curve_tells_its_value(opened, browser):
    lines = reports.metrics(np.random.default_rng(0))
    opened("run")
    said = hover(browser, "#curves .plot", across=0.99)
    data = run(
        browser, "return JSON.parse(document.querySelector('#curves [data-component=chart] script').textContent)"
    )
    (series,) = data["series"]
    assert said.splitlines()[0] == f"step {lines[-1]['step']}"
    assert float(said.split()[-1]) == pytest.approx(series["y"][-1], rel=1e-3)
    assert float(hover(browser, "#curves .plot", across=0.2).split()[-1]) != float(said.split()[-1])
    hover(browser, "h1")
    assert run(browser, "return document.getElementById('tip').hidden")


def test_arrow_keys_read_a_curve(opened, browser):
    from selenium.webdriver.common.keys import Keys

    opened("run")
    tip = "const tip = document.getElementById('tip'); return tip.hidden || tip.innerText.split('\\n')[0]"
    key(browser, "#curves .plot", Keys.END)
    assert run(browser, tip) == "step 300"
    key(browser, "#curves .plot", Keys.ARROW_LEFT)
    assert run(browser, tip) == "step 290"
    key(browser, "#curves .plot", Keys.HOME)
    assert run(browser, tip) == "step 10"


def test_one_set_of_tools_serves_all_curves_of_a_run(opened, browser):
    opened("run")
    ticks = """return [...document.querySelectorAll('#curves .charts .plot')].map((plot) =>
        [...plot.querySelectorAll('text')].map((text) => text.textContent).join()
            + plot.querySelector('.curve').getAttribute('d'))"""
    raw = "return document.querySelectorAll('#curves .curve.raw').length"
    before = run(browser, ticks)
    run(browser, "document.querySelector('#curves .log').click()")
    assert all(one != other for one, other in zip(before, run(browser, ticks), strict=True))
    run(browser, "document.querySelector('#curves .log').click()")
    assert before == run(browser, ticks) and run(browser, raw) == 0
    script = (
        "const of = document.querySelector('#curves .smooth'); of.value = 0.5; of.dispatchEvent(new Event('input'))"
    )
    run(browser, script)
    assert run(browser, raw) >= len(before)


def test_the_plot_of_any_step_figures_has_a_choice(opened, browser):
    opened("run")
    floor = "return document.querySelector('#quality .floorline') !== null"
    assert run(browser, floor) and run(browser, "return document.querySelectorAll('#quality .dot').length") == 3
    change = """const select = document.querySelector('#quality select');
        select.selectedIndex = select.options.length - 1;
        select.dispatchEvent(new Event('change'));
        return select.options[select.selectedIndex].text"""
    assert run(browser, change) == "novel" and not run(browser, floor)
    assert "novel" in hover(browser, "#quality tbody td:nth-of-type(5)") and "By seed" in run(
        browser, "return document.getElementById('tip').innerText"
    )


def test_an_ablation_hides_variants_and_moves_through_evaluations(opened, browser):
    from selenium.webdriver.common.keys import Keys

    opened("ablation")
    curves = "return document.querySelectorAll('#figures .curve').length"
    assert run(browser, curves) == 3
    key(browser, "#figures .legend button", Keys.SPACE)
    assert run(browser, curves) == 2
    assert "tim, 1 evaluation" in hover(browser, "#figures tbody td:nth-of-type(4)").replace(
        "evaluations", "evaluation"
    )
    places = "return [...document.querySelectorAll('#spread circle')].map((dot) => dot.getAttribute('cx'))"
    before = run(browser, places)
    key(browser, "#spread .steps", Keys.HOME)
    assert len(before) == 5 and run(browser, places) != before
    assert "run 1" in hover(browser, "#spread circle")
