"""The report room: a run's ledger entries as an HTML page, its JSON twin, a model card and a privacy statement."""
