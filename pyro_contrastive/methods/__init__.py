"""The methods of :class:`~pyro_contrastive.ContrastiveVI`, a mixin for each kind of question."""
