#!/usr/bin/env bash
# Ends what hksd runs on this node: Ray, with searches and trials, and MLflow. Once more, it finds nothing to end.
. ~/.hksd-env.sh
if [ -s ~/mlflow/pid ]; then
  kill -- -"$(cat ~/mlflow/pid)" 2>/dev/null
  rm -f ~/mlflow/pid ~/mlflow/uri
fi
ray stop >/dev/null && echo "ended on $(hostname)"
