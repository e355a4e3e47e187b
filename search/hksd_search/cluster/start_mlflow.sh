#!/usr/bin/env bash
# Starts the cluster's MLflow server on the head, once: a second call finds it and changes nothing.
# Prints the server's address. It listens on one private address and asks everybody for the user hksd and its password;
# docs/cluster.md shows the SSH tunnel to it.
#
#   HKSD_MLFLOW_HOST       address to listen on              (the machine's own private address)
#   HKSD_MLFLOW_PORT       port                              (5000)
#   HKSD_MLFLOW_DIR        database, users, log, pid, uri    (~/mlflow)
#   HKSD_MLFLOW_PASSWORD   file of the password              (~/.hksd/mlflow_password; made if there is none)
#   HKSD_MLFLOW_STORE      database                          (sqlite:///DIR/mlflow.db)
#   HKSD_MLFLOW_ARTIFACTS  where artifacts are kept          (s3://$HKSD_BUCKET/mlflow if HKSD_BUCKET is set, else DIR/artifacts)
#   HKSD_MLFLOW_WAIT       seconds to wait for it            (120)
#
# To stop it: kill -- -"$(cat ~/mlflow/pid)". For another password: stop it, change the file, remove DIR/users.db, start.
set -euo pipefail
umask 077

fail() { echo "start_mlflow: $*" >&2; exit 1; }

if [ -z "${HKSD_MLFLOW_HOST:-}" ]; then
  read -r HKSD_MLFLOW_HOST _ <<<"$(hostname -I)" || true
fi
host=${HKSD_MLFLOW_HOST:-}
port=${HKSD_MLFLOW_PORT:-5000}
dir=${HKSD_MLFLOW_DIR:-$HOME/mlflow}
password_file=${HKSD_MLFLOW_PASSWORD:-$HOME/.hksd/mlflow_password}
wait_s=${HKSD_MLFLOW_WAIT:-120}
if [ -n "${HKSD_BUCKET:-}" ]; then default_artifacts=s3://$HKSD_BUCKET/mlflow; else default_artifacts=$dir/artifacts; fi
artifacts=${HKSD_MLFLOW_ARTIFACTS:-$default_artifacts}

# What it sends, the password too, is not encrypted: one private address, never all.
case $host in
  '') fail "this machine reports no address; set HKSD_MLFLOW_HOST" ;;
  0.0.0.0 | :: | '*') fail "refusing to listen on every interface ($host); set HKSD_MLFLOW_HOST to one private address" ;;
esac
command -v mlflow >/dev/null || fail "no mlflow on the PATH; install the package first"

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
[ -s "$password_file" ] || { mkdir -p "$(dirname "$password_file")" && random >"$password_file"; }
chmod 600 "$password_file"
password=$(<"$password_file")
[ ${#password} -ge 12 ] || fail "$password_file: MLflow wants a password of 12 characters or more"

port_taken() { (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null; }

# ask PATH [HEADER]: the answer of the server, or nothing. Not curl: a small image may lack it, and its words could be read
# in the list of processes. Here the password goes through the environment of a shell of ours.
ask() {
  # shellcheck disable=SC2016
  header=${2:-X-Nothing: 1} timeout 10 bash -c 'exec 3<>"/dev/tcp/$0/$1"
    printf "GET %s HTTP/1.0\r\nHost: localhost:%s\r\n%s\r\n\r\n" "$2" "$1" "$header" >&3; cat <&3' "$host" "$port" "$1" 2>/dev/null |
    tr -d '\0' || true
}
mlflow_answers() { [[ $(ask /health) == *$'\r\n\r\nOK' ]]; }
must_be_guarded() { # /health answers everybody, so it says nothing about the password
  local list='/api/2.0/mlflow/experiments/search?max_results=1'
  [[ $(ask "$list") == HTTP/1.?\ 401* ]] || fail "the MLflow at $host:$port answers without a password; stop it first"
  [[ $(ask "$list" "Authorization: Basic $(printf 'hksd:%s' "$password" | base64 -w0)") == HTTP/1.?\ 200* ]] ||
    fail "the MLflow at $host:$port has another password for hksd than $password_file; stop it, remove $dir/users.db, start again"
}

stop_and_exit() { # of what was started here and is of no use
  kill -- -"$pid" 2>/dev/null
  wait "$pid" 2>/dev/null
  exit 1
}

mkdir -p "$dir"
cd "$dir"
# Two calls at once must not start two servers. The lock is held until the server answers, and the server does not
# inherit it (9>&- below). The port is the test, not a search of the process list: that would find this very script.
exec 9>lock
flock 9

if mlflow_answers || { port_taken && sleep 2 && mlflow_answers; }; then # the second look: it may just be busy
  must_be_guarded
  echo "start_mlflow: already running" >&2
else
  if port_taken; then fail "$host:$port is taken by something that is not MLflow; set HKSD_MLFLOW_PORT"; fi
  [ -s secret_key ] || random >secret_key
  # Comparing a password costs 0.3 s, on purpose, so that a right one is believed for a minute: 9 and 66 calls a second.
  printf '%s\n' '[mlflow]' 'default_permission = READ' "database_uri = sqlite:///${dir//%/%%}/users.db" \
    'admin_username = hksd' 'auth_cache_ttl_seconds = 60' >auth.ini
  # One worker answers faster than four and takes a third of the memory. Job execution would start more processes.
  # --allowed-hosts replaces MLflow's own list: tunnels arrive as localhost, the nodes as host:port.
  # Secrets, and a database's address has one, are in the environment: the list of processes shows a command to everybody.
  # setsid and nohup: the SSH session of `ray up` ends before the server does.
  (
    unset MLFLOW_TRACKING_URI MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
    export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
    export MLFLOW_AUTH_CONFIG_PATH=$dir/auth.ini MLFLOW_AUTH_ADMIN_PASSWORD=$password
    MLFLOW_FLASK_SERVER_SECRET_KEY=$(<secret_key)
    export MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_BACKEND_STORE_URI=${HKSD_MLFLOW_STORE:-sqlite:///$dir/mlflow.db}
    exec setsid nohup mlflow server --host "$host" --port "$port" --workers 1 --app-name basic-auth \
      --artifacts-destination "$artifacts" --allowed-hosts "localhost:*,127.0.0.1:*,$host:$port"
  ) </dev/null >>server.log 2>&1 9>&- &
  pid=$!
  echo "$pid" >pid
  deadline=$((SECONDS + wait_s))
  until mlflow_answers; do
    if ! kill -0 "$pid" 2>/dev/null; then
      tail -n 20 server.log >&2
      tail -n 20 server.log | grep -q flask_wtf && fail "MLflow lacks what its log-in needs: pip install 'hksd[cluster]'"
      fail "the server ended at once; its log is $dir/server.log"
    fi
    if ((SECONDS >= deadline)); then
      tail -n 20 server.log >&2
      (fail "no answer on $host:$port within $wait_s s; its log is $dir/server.log") || stop_and_exit
    fi
    sleep 0.3
  done
  (must_be_guarded) || stop_and_exit
fi

echo "http://$host:$port" >uri # read by the login shells of the head, see set_up.sh
cat uri
