"""Foreign files become validated Records, bounded by unit of privacy. Nothing is trusted, and nothing is quoted."""
