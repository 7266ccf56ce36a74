"""The weight watermark: a keyed rotation of the singular pairs of a released adapter, and its detector."""
