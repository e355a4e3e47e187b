"""Everything that knows Ray or lives on a worker."""
