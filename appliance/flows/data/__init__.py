"""Private data: `ingest`, `verify`."""
