"""The student outside training: files that people take home, and how fast it answers."""
