"""The working dtypes, and the folder with frozen frames."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fixtures():
    """Folder of the files that tests compare with."""
    return Path(__file__).parent.parent / "fixtures"
