"""What comes next, and what stops early. Knows no Ray and no MLflow."""
