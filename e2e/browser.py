"""What a person does in a browser, as functions: find by mark, click, type, read. Every wait has a deadline."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from PIL import Image
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
)
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE = 20
"""Seconds that a page may take on a busy machine."""
PASSING = (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
)

T = TypeVar("T")


def start_browser(binary: str, driver: str, *, width: int = 1280, height: int = 900) -> Chrome:
    """Headless Chromium that reaches this machine only."""
    options = ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--force-device-scale-factor=1",
        "--hide-scrollbars",
        f"--window-size={width},{height}",
        # Whatever isn't this machine can't be looked up: a page that needs the internet shows.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return Chrome(options=options, service=Service(driver))


def until(browser: Chrome, condition: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """Waits until the condition gives something true, and returns that."""
    wait = WebDriverWait(browser, seconds, poll_frequency=0.1, ignored_exceptions=PASSING)
    return wait.until(lambda _: condition(), f"{what} did not come within {seconds} s at {browser.current_url}")


def all_marked(browser: Chrome, mark: str) -> list[WebElement]:
    """The visible elements with this mark."""
    found = browser.find_elements(By.CSS_SELECTOR, f'[data-testid="{mark}"]')
    return [element for element in found if element.is_displayed()]


def marked(browser: Chrome, mark: str, seconds: float = PATIENCE) -> WebElement:
    """The first visible element with this mark, once it is there."""
    return until(browser, lambda: (all_marked(browser, mark) or [None])[0], f"[{mark}]", seconds)


def click(browser: Chrome, mark: str, seconds: float = PATIENCE) -> None:
    """Clicks what has this mark, scrolled into the middle first, once nothing lies over it."""

    def try_click() -> bool:
        element = marked(browser, mark)
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()
        return True

    until(browser, try_click, f"a click on [{mark}]", seconds)


def input_of(browser: Chrome, mark: str) -> WebElement:
    """The native input of a field."""
    element = marked(browser, mark)
    return element if element.tag_name in ("input", "textarea") else element.find_element(By.CSS_SELECTOR, "input")


def fill(browser: Chrome, mark: str, text: object) -> None:
    """Replaces what stands in a field, and leaves it."""

    def try_fill() -> bool:
        element = input_of(browser, mark)
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.send_keys(Keys.CONTROL, "a")
        element.send_keys(str(text), Keys.TAB)
        return True

    until(browser, try_fill, f"typing into [{mark}]")


def choose(browser: Chrome, mark: str, text: str, *, typed: str = "") -> None:
    """Picks an entry of a select by how its words begin; `typed` is what one types to find it in a long list."""
    click(browser, mark)
    if typed:
        input_of(browser, mark).send_keys(typed)

    def try_choose() -> bool:
        for entry in browser.find_elements(By.CSS_SELECTOR, ".q-menu .q-item"):
            if entry.is_displayed() and entry.text.startswith(text):
                entry.click()
                return True
        return False

    until(browser, try_choose, f"{text!r} among the choices of [{mark}]")
    until(browser, lambda: not browser.find_elements(By.CSS_SELECTOR, ".q-menu .q-item"), "the end of the menu")


def page_text(browser: Chrome) -> str:
    """What a reader sees."""
    return browser.find_element(By.TAG_NAME, "body").text


def wait_for_text(browser: Chrome, text: str, seconds: float = PATIENCE) -> None:
    """Waits until the page shows a text."""
    until(browser, lambda: text in page_text(browser), f"{text!r}", seconds)


def wait_for_words_of(browser: Chrome, mark: str, text: str, seconds: float = PATIENCE) -> None:
    """Waits until an element shows a text."""
    until(browser, lambda: text in marked(browser, mark).text, f"{text!r} in [{mark}]", seconds)


def overflowing(browser: Chrome) -> list[str]:
    """What is wider than the window, or cut within its own box without an ellipsis; an empty list if all fits."""
    return browser.execute_script(
        """
        const wide = document.documentElement.scrollWidth > window.innerWidth + 1;
        const found = wide ? [`page: ${document.documentElement.scrollWidth} > ${window.innerWidth}`] : [];
        for (const element of document.querySelectorAll('label, button, h1, h2, h3, td, th, .q-tab, .q-field__label')) {
          const style = getComputedStyle(element), box = element.getBoundingClientRect();
          if (!box.width || !box.height || style.visibility === 'hidden') continue;
          if (element.scrollWidth > element.clientWidth + 2 && style.overflowX === 'hidden'
              && style.textOverflow !== 'ellipsis' && element.clientWidth)
            found.push(`${element.className}: ${element.innerText.slice(0, 60)}`);
          if (style.textOverflow === 'ellipsis' && element.scrollWidth > element.clientWidth + 1)
            found.push(`cut: ${element.innerText.slice(0, 60)}`);
        }
        return found;
        """
    )


def faults(browser: Chrome) -> list[str]:
    """What the browser's console complained of since the last call."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def shoot(browser: Chrome, path: Path, *, whole: bool = False) -> None:
    """Writes a picture of the window, or of the whole page, in 256 colours, which take a quarter of the space."""
    size = browser.get_window_size()
    if whole:
        script = "return document.documentElement.scrollHeight + window.outerHeight - window.innerHeight"
        browser.set_window_size(size["width"], max(browser.execute_script(script), size["height"]))
    picture = Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    browser.set_window_size(size["width"], size["height"])
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
