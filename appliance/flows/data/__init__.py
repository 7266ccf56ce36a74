"""Private data: `ingest`, `retire`, `verify`."""
