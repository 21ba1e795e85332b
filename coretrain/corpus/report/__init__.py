"""What became of the documents: report.html and the data card."""
