"""The key agent: `python -m appliance.keyagent` holds the root key while the store is unsealed. It has no database."""
