"""Debian's Chromium, without a window."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from tests.lacking import lacking


@contextlib.contextmanager
def chromium(downloads: Path) -> Iterator[Chrome]:
    """A driver whose downloads go to `downloads`."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):  # they are no Python packages, so that make setup cannot install them; CI does
        lacking("no Chromium with its driver: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options, ChromeService(driver))
    try:
        chrome.downloads = downloads
        where = {"behavior": "allow", "downloadPath": str(downloads)}
        chrome.execute_cdp_cmd("Browser.setDownloadBehavior", where)
        yield chrome
    finally:
        chrome.quit()
