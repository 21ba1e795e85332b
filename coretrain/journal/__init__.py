"""What a run tells: terminal, metrics.jsonl, trackers and report.html."""
