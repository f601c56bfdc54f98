"""A model as a folder: weights as safetensors, everything else as JSON. Never pickle."""
