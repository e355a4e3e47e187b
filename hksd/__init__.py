"""The core of hksd: distil a teacher into a small student. Knows no Ray, Optuna, MLflow or command line."""

__version__ = "0.1.0"
