"""The page in a real browser: headless Chromium, driven by Selenium."""

import base64
import contextlib
import io
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from tests.player.serving import STRIPES, Pusher, serving, world_with_ends
from worldmodel.player.factory import SessionFactory

pytestmark = pytest.mark.slow
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[test]'")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("needs chromium and chromedriver: apt install chromium chromium-driver", allow_module_level=True)
ARROW_UP, ARROW_LEFT, ARROW_RIGHT = "\ue013", "\ue012", "\ue014"
FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1280,900")
SECONDS = 60  # that something may take on a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page, as a player uses it."""

    def __init__(self, browser, address: str) -> None:
        self.browser = browser
        browser.get(address)
        self.wait(lambda: self.js("return player.session !== null && player.step > 0 || player.ended"))

    def js(self, code: str):
        return self.browser.execute_script(code)

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.text("message")
            time.sleep(0.05)

    def text(self, name: str) -> str:
        return self.browser.find_element("id", name).text

    def click(self, name: str) -> None:
        self.browser.find_element("id", name).click()

    def choose(self, name: str, value: str) -> None:
        code = f"const e = document.getElementById('{name}'); e.value = '{value}'; e.dispatchEvent(new Event('change'))"
        self.js(code)

    def step(self) -> int:
        return self.js("return player.step")

    def starts(self) -> int:
        return self.js("return player.starts")

    def picture(self, canvas: str = "dream") -> np.ndarray:
        url = self.js(f"return document.getElementById('{canvas}').toDataURL('image/png')")
        return np.array(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(int)

    def keys(self):
        return webdriver.ActionChains(self.browser)

    @contextlib.contextmanager
    def held(self, *keys: str) -> Iterator[None]:
        for key in keys:
            self.keys().key_down(key).perform()
        try:
            yield
        finally:
            for key in keys:
                self.keys().key_up(key).perform()

    def restart(self, seed: int) -> None:
        """Start with a seed, paused."""
        before = self.starts()
        self.choose("seed", str(seed))
        self.wait(lambda: self.starts() > before and not self.js("return player.waiting.length"))

    def play_steps(self, number: int) -> None:
        goal = self.step() + number
        self.wait(lambda: self.step() >= goal or self.js("return player.ended"))


@pytest.fixture(scope="module")
def doom(browser) -> Iterator[Page]:
    with serving(SessionFactory()) as server:
        yield Page(browser, server.address)


@pytest.fixture
def page(doom) -> Page:
    """The page of Doom, at a new start with the same seed, paused."""
    doom.browser.set_window_size(1280, 900)
    doom.choose("world", "doom-health-gathering")
    doom.choose("clip", "1")
    doom.restart(3)
    doom.wait(lambda: doom.step() > 0)
    return doom


def shift(before: np.ndarray, after: np.ndarray) -> int:
    """By how many pixels a picture moved to the right: the shift with the smallest difference."""
    a, b = (picture[20:60].mean(2) for picture in (before, after))

    def difference(pixels: int) -> float:
        width = a.shape[1] - abs(pixels)
        left, right = max(pixels, 0), max(-pixels, 0)
        return float(np.abs(b[:, left : left + width] - a[:, right : right + width]).mean())

    return min(range(-24, 25), key=difference)


def test_a_held_key_changes_the_picture_and_its_button_lights_up(page):
    before, step = page.picture(), page.step()
    with page.held(ARROW_UP):
        time.sleep(2)
        assert "held" in page.browser.find_element("id", "action-forward").get_attribute("class")
        assert page.step() > step
    assert np.abs(page.picture() - before).mean() > 5


@pytest.mark.parametrize(("key", "direction"), [(ARROW_LEFT, 1), (ARROW_RIGHT, -1)])
def test_looks_move_the_picture_the_other_way(page, key, direction):
    with page.held(key):
        page.play_steps(2)
        shifts = []
        for _ in range(4):
            step, before = page.js("return player.step"), page.picture()
            page.play_steps(1)
            if page.step() == step + 1:
                shifts.append(shift(before, page.picture()))
    assert np.sign(np.mean(shifts)) == direction, shifts


def test_two_keys_are_one_action_if_the_world_has_it(page):
    with page.held(ARROW_UP, ARROW_LEFT):
        assert page.js("return chosenAction()") == "forward_look_left"
    page.wait(lambda: page.js("return chosenAction()") == "noop")
    with page.held("5"):
        assert page.js("return chosenAction()") == "strafe_right"


def test_blur_releases_all_keys(page):
    page.keys().key_down(ARROW_UP).perform()
    assert page.js("return player.pressed.size") == 1
    page.js("window.dispatchEvent(new Event('blur'))")
    assert page.js("return player.pressed.size") == 0
    assert page.js("return chosenAction()") == "noop"
    page.keys().key_up(ARROW_UP).perform()


def test_space_pauses_and_r_starts_anew_with_the_next_seed(page):
    page.keys().send_keys(" ").perform()
    page.wait(lambda: not page.js("return player.waiting.length"))
    step = page.step()
    time.sleep(0.5)
    assert page.step() == step
    page.keys().send_keys(" ").perform()
    page.play_steps(3)
    page.keys().send_keys("r").perform()
    page.wait(lambda: page.step() < 3)
    assert page.js("return document.getElementById('seed').value") == "4"


def test_a_saved_film_opens(page, tmp_path):
    page.play_steps(3)
    for kind, first in (("gif", b"GIF8"), ("episode", b"PK")):
        page.click(f"save-{kind}")
        page.wait(lambda kind=kind: kind in page.text("film"))
        address = page.browser.find_element("id", "film-link").get_attribute("href")
        with urllib.request.urlopen(address) as answer:
            data = answer.read()
        assert data.startswith(first)
        if kind == "gif":
            assert len(iio.imread(data, extension=".gif")) > 3
    page.play_steps(1)


def test_two_worlds_are_switched(page):
    before = page.picture()
    page.choose("world", "lab-seekavoid")
    page.wait(lambda: page.js("return player.session.world") == "lab-seekavoid")
    page.play_steps(1)
    assert "Lab" in page.text("about")
    assert "15 frames/s" in page.js("return document.getElementById('pace').options[0].textContent")
    assert np.abs(page.picture() - before).mean() > 5


def test_take_cover_ends_by_a_fireball(page):
    page.choose("world", "doom-take-cover")
    page.wait(lambda: page.js("return player.session.world") == "doom-take-cover")
    page.choose("clip", "")
    page.choose("pace", "fast")
    page.restart(3)
    page.wait(lambda: page.js("return player.ended"))
    assert "The episode ended after 48 steps" in page.text("end-text")
    assert int(page.text("best")) >= 48
    page.choose("pace", "real")


def test_a_picture_is_a_start(page, tmp_path):
    strip = np.zeros((84, 168, 3), np.uint8)
    strip[:, 84:] = (200, 30, 30)  # the last one is taken
    iio.imwrite(tmp_path / "strip.png", strip)
    starts = page.starts()
    page.browser.find_element("id", "picture").send_keys(str(tmp_path / "strip.png"))
    page.wait(lambda: page.starts() > starts and not page.text("note"))
    assert page.text("message") == ""
    page.choose("clip", "1")


def test_on_a_phone_all_buttons_are_in_view(page):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        code = """return [...document.querySelectorAll('#actions button, #controls button, #films button')].map(
            (button) => { const box = button.getBoundingClientRect();
                          return [button.id, box.left, box.top, box.right, box.bottom, box.height]; })"""
        boxes = page.js(code)
        assert len(boxes) == 9 + 3 + 3
        for name, left, top, right, bottom, height in boxes:
            assert 0 <= left < right <= 390, name
            assert 0 <= top < bottom <= 844, name
            assert height >= 40, name
        assert page.js("return document.documentElement.scrollWidth") <= 390
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_button_is_held_by_a_pointer(page):
    button = page.browser.find_element("id", "action-backward")
    page.keys().click_and_hold(button).perform()
    assert page.js("return chosenAction()") == "backward"
    page.keys().release().perform()
    page.wait(lambda: page.js("return chosenAction()") == "noop")


def test_nothing_was_complained_about(page):
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_an_episode_ends_and_its_steps_are_the_score(browser, world_run, tmp_path):
    factory = SessionFactory(str(world_with_ends(world_run, tmp_path / "deadly", 3)))
    with serving(factory) as server:
        page = Page(browser, server.address)
        page.wait(lambda: page.js("return player.ended"))
        assert "The episode ended after" in page.text("end-text")
        assert page.text("best") == page.text("step")
        starts = page.starts()
        page.click("end-new")
        page.wait(lambda: page.starts() > starts)


def test_beside_shows_the_truth_and_two_curves(browser, world_run):
    with serving(SessionFactory(str(world_run), beside=True, env=STRIPES)) as server:
        page = Page(browser, server.address)
        page.wait(lambda: page.step() > 3)
        assert page.picture("truth").shape == page.picture("dream").shape == (24, 24, 3)
        assert "bits per code" in page.text("surprise")
        assert "dB" in page.text("psnr")
        assert page.js("return player.curves.psnr.length") > 2


def test_an_agent_plays_while_no_key_is_held(browser, world_run, tmp_path, monkeypatch):
    run = world_with_ends(world_run, tmp_path / "endless", -50)
    monkeypatch.setattr("worldmodel.player.factory.load_policy", lambda agent, epsilon: (Pusher(), {"weights": "0"}))
    with serving(SessionFactory(str(run), agent="pusher")) as server:
        page = Page(browser, server.address)
        chosen = "return [...document.querySelectorAll('#actions .chosen')].map((button) => button.id).join()"
        page.wait(lambda: page.js(chosen) in ("action-left", "action-right"))
        assert page.text("agent-line").startswith("pusher plays while you hold no key")
        with page.held(ARROW_LEFT):
            page.wait(lambda: page.js(chosen) == "")
        page.wait(lambda: page.js(chosen) != "")
        page.keys().send_keys("g").perform()
        page.wait(lambda: page.js(chosen) == "")


def test_recording_needs_no_world(browser, tmp_path):
    with serving(SessionFactory(env=STRIPES, store=str(tmp_path / "mine"))) as server:
        page = Page(browser, server.address)
        page.wait(lambda: page.js("return player.ended"))
        assert page.text("note") == "recorded: 1 episodes, 31 frames"
        assert not page.browser.find_element("id", "dream-label").is_displayed()
