"""Parts of a model: how they are saved, and checks of those that users give."""
