"""Everything that knows Ray, Optuna or MLflow: searches over the runs that `hksd` describes and trains."""
