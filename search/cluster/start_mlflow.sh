#!/usr/bin/env bash
# Starts the cluster's MLflow server on the head, once: a second call finds it and changes nothing.
# Prints the server's address. It listens on one private address; docs/cluster.md shows the SSH tunnel to it.
#
#   HKSD_MLFLOW_HOST       address to listen on       (the machine's own private address)
#   HKSD_MLFLOW_PORT       port                       (5000)
#   HKSD_MLFLOW_DIR        database, log, pid, uri    (~/mlflow)
#   HKSD_MLFLOW_ARTIFACTS  where artifacts are kept   (s3://$HKSD_BUCKET/mlflow if HKSD_BUCKET is set, else DIR/artifacts)
#   HKSD_MLFLOW_WAIT       seconds to wait for it     (120)
#
# To stop it: kill -- -"$(cat ~/mlflow/pid)"
set -euo pipefail
umask 077

fail() { echo "start_mlflow: $*" >&2; exit 1; }

if [ -z "${HKSD_MLFLOW_HOST:-}" ]; then
  read -r HKSD_MLFLOW_HOST _ <<<"$(hostname -I)" || true
fi
host=${HKSD_MLFLOW_HOST:-}
port=${HKSD_MLFLOW_PORT:-5000}
dir=${HKSD_MLFLOW_DIR:-$HOME/mlflow}
wait_s=${HKSD_MLFLOW_WAIT:-120}
if [ -n "${HKSD_BUCKET:-}" ]; then default_artifacts=s3://$HKSD_BUCKET/mlflow; else default_artifacts=$dir/artifacts; fi
artifacts=${HKSD_MLFLOW_ARTIFACTS:-$default_artifacts}

# The server has no log-in of its own, so it must never listen on every interface.
case $host in
  '') fail "this machine reports no address; set HKSD_MLFLOW_HOST" ;;
  0.0.0.0 | :: | '*') fail "refusing to listen on every interface ($host); set HKSD_MLFLOW_HOST to one private address" ;;
esac
command -v mlflow >/dev/null || fail "no mlflow on the PATH; install the package first"

port_taken() { (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null; }

mlflow_answers() { # not curl: a small image may lack it
  local reply
  # shellcheck disable=SC2016
  reply=$(timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1"
    printf "GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n" >&3; cat <&3' "$host" "$port" 2>/dev/null) || return 1
  [[ $reply == *$'\r\n\r\nOK' ]]
}

mkdir -p "$dir"
cd "$dir"
# Two calls at once must not start two servers. The lock is held until the server answers, and the server does not
# inherit it (9>&- below). The port is the test, not a search of the process list: that would find this very script.
exec 9>lock
flock 9

if mlflow_answers || { port_taken && sleep 2 && mlflow_answers; }; then # the second look: it may just be busy
  echo "start_mlflow: already running" >&2
else
  if port_taken; then fail "$host:$port is taken by something that is not MLflow; set HKSD_MLFLOW_PORT"; fi
  # One worker answers faster than four and takes a third of the memory. Job execution would start more processes.
  # --allowed-hosts replaces MLflow's own list: tunnels arrive as localhost, the nodes as host:port.
  # setsid and nohup: the SSH session of `ray up` ends before the server does.
  env -u MLFLOW_TRACKING_URI MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    setsid nohup mlflow server --host "$host" --port "$port" --workers 1 \
    --backend-store-uri "sqlite:///$dir/mlflow.db" --artifacts-destination "$artifacts" \
    --allowed-hosts "localhost:*,127.0.0.1:*,$host:$port" </dev/null >>server.log 2>&1 9>&- &
  pid=$!
  echo "$pid" >pid
  deadline=$((SECONDS + wait_s))
  until mlflow_answers; do
    if ! kill -0 "$pid" 2>/dev/null; then
      tail -n 20 server.log >&2
      fail "the server ended at once; its log is $dir/server.log"
    fi
    if ((SECONDS >= deadline)); then
      kill -- -"$pid" 2>/dev/null || true
      tail -n 20 server.log >&2
      fail "no answer on $host:$port within $wait_s s; its log is $dir/server.log"
    fi
    sleep 0.3
  done
fi

echo "http://$host:$port" >uri # read by the login shells of the head, see cluster.yaml
cat uri
