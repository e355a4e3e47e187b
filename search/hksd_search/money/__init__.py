"""What machines cost, and how many hours of them a search takes."""
