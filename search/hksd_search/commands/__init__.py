"""The commands of `hksd`, one file each: its options, and what it prints. Heavy imports are inside the functions."""
