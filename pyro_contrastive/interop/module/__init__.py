"""The methods of scvi-tools' module, by running the Pyro programs."""
