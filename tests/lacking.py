"""What a machine has not, and some tests need: skipped on somebody's own machine, a failure on CI."""

import os
from typing import NoReturn

import pytest


def lacking(reason: str) -> NoReturn:
    """Skip the test for `reason`; where `CI` is set, whose machines can be given everything, fail it."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; on CI nothing is skipped for want of a program", pytrace=False)
    pytest.skip(reason)  # never on CI, see above
