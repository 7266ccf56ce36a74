"""The sealed directory (bundle or report) and the stand-alone verifier that goes with it. Control plane, no ledger."""
