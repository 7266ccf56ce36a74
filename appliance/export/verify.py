"""The stand-alone verifier of a sealed directory."""
