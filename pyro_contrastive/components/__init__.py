"""Parts of a model: what makes them saveable, and what users give for them."""
