"""Exchange with other tools: scvi-tools and ArviZ."""
