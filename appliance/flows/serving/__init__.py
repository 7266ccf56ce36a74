"""Serving a model: who may ask, what may be served, the gateway's supervisor, and its spool in the ledger."""
