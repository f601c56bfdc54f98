"""What people do with a fitted model."""
