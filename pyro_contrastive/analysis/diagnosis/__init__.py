"""What commonly goes wrong with a fit, measured and put into words."""
