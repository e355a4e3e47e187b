"""The teacher and what it knows of each view of the images, made once and kept."""
