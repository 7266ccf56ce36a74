"""The release bundle: locks, builder, list of parts."""
