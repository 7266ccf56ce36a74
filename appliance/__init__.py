"""An appliance that fine-tunes an open-weights language model on data that must never leave its building.

Two planes. The *control plane* (`cli`, `flows`, `ledger`, `policy`, `privacy`, `ingest`, `store`) holds the
database and decides; it never loads torch. The *compute plane* (`worker`, `train`, `models`) holds one dataset
key and one run directory; it has no database and no network. `docs/life-of-a-record.md` follows one record
through both.
"""

__version__ = "0.1.0"
