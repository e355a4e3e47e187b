"""`hksd estimate`: what a search will take."""
