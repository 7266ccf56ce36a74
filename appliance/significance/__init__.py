"""Whether two models can be told apart: exact and resampling tests on the same items, and what they could find."""
