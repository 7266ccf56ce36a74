"""Empirical checks of the privacy mechanism: the engine self-test before every run."""
