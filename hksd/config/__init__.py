"""A run as frozen dataclasses: what it is, how a student is trained, what changes on the way."""
