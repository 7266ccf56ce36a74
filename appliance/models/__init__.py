"""Base models: foreign files are checked, converted and loaded here, offline, and no code of theirs ever runs."""
