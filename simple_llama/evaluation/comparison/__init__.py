"""Several runs side by side in one page that opens anywhere (comparison.html)."""
