"""Data at rest: atomic files, keyslots and wrapped keys, sealed objects, and the agent that holds the root key."""
