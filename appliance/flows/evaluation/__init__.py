"""Evaluations on held-out private data, each a differentially private release."""
