"""The site of the documentation in a browser: every page, in every language, on a desk and on a telephone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from documentation_tools.pages import LANGUAGES
from e2e.browser import faults
from e2e.conftest import ROOT

DESK, TELEPHONE = (1280, 900), (390, 844)
BEYOND = 4  # pixels that the padding of code at the end of a line may stick out of its paragraph

# Wide tables and code scroll within their own box; on a desk no table needs to.
TOO_WIDE = """
const found = [];
const check = (element, what) => {
  if (element.clientWidth && element.scrollWidth > element.clientWidth + arguments[1])
    found.push(`${what} of ${element.scrollWidth} in ${element.clientWidth}: ${element.innerText.slice(0, 60)}`);
};
check(document.documentElement, 'page');
document.querySelectorAll('.md-content :is(h1, h2, h3, h4, p, li, img)').forEach((element) => check(element, 'text'));
if (arguments[0]) document.querySelectorAll('.md-typeset__scrollwrap').forEach((element) => check(element, 'table'));
return found;
"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing of it."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True)
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pages(site: Path, language: str) -> list[str]:
    """The pages of one language, below the site's root."""
    others = {name for name in LANGUAGES if name != "en"}
    found = (file.relative_to(site) for file in sorted(site.rglob("*.html")) if file.name != "404.html")
    return [page.as_posix() for page in found if (page.parts[0] if page.parts[0] in others else "en") == language]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_of_the_documentation_fits(browser: Chrome, site: Path, address: str, language: str) -> None:
    english = [page.removesuffix(".html") for page in pages(site, "en")]
    prefix = "" if language == "en" else f"{language}/"
    assert [page.removesuffix(".html").removeprefix(prefix) for page in pages(site, language)] == english
    wrong = []
    for size in (DESK, TELEPHONE):
        browser.set_window_size(*size)
        for page in pages(site, language):
            browser.get(f"{address}/{page}")
            # The theme looks for a map of each language, which only a site with a known address has.
            told = [fault for fault in faults(browser) if "/sitemap.xml" not in fault]
            told += browser.execute_script(TOO_WIDE, size == DESK, BEYOND)
            wrong += [f"{page} at {size[0]}: {fault}" for fault in told]
    assert wrong == []
