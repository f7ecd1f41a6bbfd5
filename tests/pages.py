"""What a report's side-by-side browser holds."""

import base64
import json
import re
import zlib
from typing import Any


def browsed(page: str) -> dict[str, Any]:
    """The data of the browser in a page."""
    (packed,) = re.findall(r'<script type="application/octet-stream" id="browser-data">([^<]*)</script>', page)
    return json.loads(zlib.decompress(base64.b64decode(packed), wbits=-15))
