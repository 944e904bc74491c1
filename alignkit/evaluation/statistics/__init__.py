"""Every model against every other: paired figures, their intervals and tests."""
