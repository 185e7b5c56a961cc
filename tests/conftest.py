"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# No time limits in tests: a busy machine is not a bug. The same examples every time: a red run can be repeated.
settings.register_profile("webtext", deadline=None, derandomize=True)
settings.load_profile("webtext")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared real data beside the checkout (or `$WEBTEXT_SHARED`); skips where it is absent."""
    folder = Path(os.environ.get("WEBTEXT_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "CATALOGUE.md").exists():
        pytest.skip(f"no shared data at {folder}: set WEBTEXT_SHARED to the folder that holds data/CATALOGUE.md")
    return folder
