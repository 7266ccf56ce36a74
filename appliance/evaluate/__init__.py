"""Utility: what an adapter gains, said with differential privacy on private data and exactly on public text."""
