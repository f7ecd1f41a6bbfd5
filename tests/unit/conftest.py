import pytest

from tests.validation import options_that_pass


@pytest.fixture
def options(tmp_path) -> dict:
    """Options of data validation that pass: 40 pairs, 5 prompts, 4 to evaluate on, 3 demonstrations."""
    return options_that_pass(tmp_path)
