"""`hksd confirm`: the best students and the arms again over new seeds, on the test split once."""
