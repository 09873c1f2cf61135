"""The report of one fine-tuning run as a page (models/report.html)."""
