"""Better weights to an honest report."""
