"""A run under way: the loop, what it adds up, saves, measures and tells."""
