"""What the ledger can say."""
