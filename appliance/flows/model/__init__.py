"""Base models: `import_model`, `verify`."""
