"""Progressive growth."""
