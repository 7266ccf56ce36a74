"""What it costs to serve a model oneself, from when on that is cheaper, and how firm a weighted decision is."""
