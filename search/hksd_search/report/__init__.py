"""`hksd report`: a search as one HTML file."""
