"""What leaves the building or is shown to auditors: bundles and reports, sealed with their proofs."""
