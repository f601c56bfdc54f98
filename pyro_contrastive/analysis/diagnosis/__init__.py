"""The diagnosis of a fit: measurements of common failures, and findings that explain them."""
