"""What keeps private data inside: a hardened process, no network, few files, and planted leakers that prove it."""
