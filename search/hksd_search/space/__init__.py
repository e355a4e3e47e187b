"""What may be searched, and what a student costs before it is trained. Knows no Ray and no MLflow."""
