"""DP-SGD on LoRA parameters: sampling, per-record gradients, clipping, noise, checkpoints, the loop."""
