"""Take the README's pictures of the demo's report, after `make demo`: `python -m docs.screenshots`. Needs chromium."""

import os
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

REPORT = Path("build/demo/report.html")
IMAGES = Path(__file__).parent / "images"
WIDTH, TALLER_THAN_ANY, MARGIN = 1080, 3000, 40

# What of the page is left out of each picture; nothing in it is changed.
PICTURES = {
    "report": "footer, #numbers > :not(h2, .tiles), #numbers ~ section",
    "curves": "header, footer, section:not(#training), #training figure:nth-of-type(n+7)",
    "gold": "header, footer, section:not(#gold)",
}


def shoot(report: str, left_out: str, picture: Path, tallest: int = TALLER_THAN_ANY) -> None:
    """Render a page without what the selector `left_out` names, cut off below the last thing on it.

    Args:
        tallest: Pixels at which it is cut off in any case.

    Raises:
        subprocess.CalledProcessError: The browser failed. `CHROMIUM` names another than `chromium`.
    """
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        page.write_text(
            report.replace("</head>", f"<style>{left_out} {{ display: none }}</style></head>"), encoding="utf-8"
        )
        subprocess.run(
            [
                os.environ.get("CHROMIUM", "chromium"),
                *("--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{TALLER_THAN_ANY}"),
                "--blink-settings=preferredColorScheme=1",  # light, whatever this desktop is set to
                f"--screenshot={picture}",
                page.as_uri(),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )
    image = Image.open(picture).convert("RGB")
    paper = Image.new("RGB", image.size, image.getpixel((0, 0)))
    bottom = ImageChops.difference(image, paper).getbbox()[3]
    image.crop((0, 0, WIDTH, min(bottom + MARGIN, tallest))).quantize(256).save(picture, optimize=True)


if __name__ == "__main__":
    for name, left_out in PICTURES.items():
        shoot(REPORT.read_text(encoding="utf-8"), left_out, IMAGES / f"{name}.png")
        print(IMAGES / f"{name}.png")
