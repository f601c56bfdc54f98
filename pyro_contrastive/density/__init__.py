"""Log-densities of counts and their gradients, and how they are evaluated fast."""
