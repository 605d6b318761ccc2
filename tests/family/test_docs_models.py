"""The page about models is what the code finds."""

from __future__ import annotations

from scripts.models_table import PAGE, table


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == table(), "run python -m scripts.models_table"
