"""Parts of a model: what makes them saveable, and checks of those that users give."""
