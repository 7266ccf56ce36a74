"""OpenAI-compatible gateway over existing engines; a process of its own, with a spool and without the ledger."""
