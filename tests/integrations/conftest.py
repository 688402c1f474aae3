from pathlib import Path

import pytest

# Seconds; all tests in these files have the mark `more`.
SLOW_TO_IMPORT = ("test_lightning_", "test_transformers_", "test_accelerate", "test_peft")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves files alone whose tests are all deselected, ahead of what they import."""
    return True if config.option.markexpr == "not more" and collection_path.name.startswith(SLOW_TO_IMPORT) else None
