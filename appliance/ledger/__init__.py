"""The ledger: business rows and the append-only, signed Merkle log they commit with. Enter through `ledger.ledger`."""
