"""What is known of a search, on disk. Knows no Ray."""
