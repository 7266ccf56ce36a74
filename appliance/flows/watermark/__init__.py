"""The mark in released adapters: `keygen`, `embed`, `detect`. Key and algorithm, the ledger said beforehand."""
