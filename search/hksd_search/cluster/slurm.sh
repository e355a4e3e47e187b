#!/bin/bash
# A search with hksd on a Slurm cluster.   sbatch FILE [options of `hksd search`]   ...   scancel JOB
#
# It needs, on all nodes at the same paths (docs/cluster.md):
#   @VENV@   a Python environment with hksd, made once on a login node:
#            python3 -m venv @VENV@ && @VENV@/bin/pip install 'hksd[search]'   (from the project's folder: '.[search]')
#   @SHARED@   the folder of all runs, on a file system that the nodes share
#
# Two minutes before its time is over, or when Slurm takes the nodes back, the trials save and the job goes into the queue
# again, where it left off. What is set below can be said to sbatch as well: sbatch --time=02:00:00 --partition=gpu FILE
# Made by `hksd cluster slurm`.
#SBATCH --job-name=@NAME@
#SBATCH --nodes=@MAX_WORKERS@
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

space=@SPACE@
name=@NAME@
export HKSD_RUNS=@SHARED@
export PATH=@VENV@/bin:$PATH

set -uo pipefail
umask 077 # what is made here, the token before all, is for this user only: others have processes on these nodes too
say() { echo "$(date +%T) hksd on $(hostname): $*" >&2; }
job=${SLURM_JOB_ID:?is not set: this is a batch script, for sbatch}
command -v hksd >/dev/null || { say "there is no hksd in @VENV@, see the first lines of this script"; exit 2; }
why=$(python -m hksd_search.cluster.versions hksd==@HKSD@ ray==@RAY@ 2>&1) || { say "in @VENV@ $why"; exit 2; }
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
((${#nodes[@]})) || { say "scontrol does not name the nodes of this job"; exit 1; }

# --- secrets and addresses of this job, in the shared folder

own=$HKSD_RUNS/.slurm/$job
mkdir -p "$own" || exit 1
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$own/auth_token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$own/auth_token RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
# Only this script's search writes to MLflow, so that no server is needed. A file for each search: two jobs on two nodes
# that write to one SQLite file on a network's file system could damage it.
export MLFLOW_TRACKING_URI=${MLFLOW_TRACKING_URI:-sqlite:///$HKSD_RUNS/mlflow-$name.db}

# --- Ray, on any ports that are free: other jobs, and other people's, may run on the same node

node() { # options of `ray start`; lasts as long as Ray does
  local ports=(--node-manager-port=0 --object-manager-port=0 --min-worker-port=0 --max-worker-port=0
    --metrics-export-port=0 --runtime-env-agent-port=0 --dashboard-agent-grpc-port=0 --dashboard-agent-listen-port=0)
  local here=/tmp/hksd-$SLURM_JOB_ID ray='' ended=''
  mkdir -p -m 700 "$here"
  [ -O "$here" ] || { echo "$here is somebody else's" >&2; return 1; }
  unset OMP_NUM_THREADS # of Slurm; without it Ray gives a trial as many threads as it has CPUs
  trap 'ended=yes; kill "$ray" 2>/dev/null' TERM INT
  for try in 1 2 3; do # on a busy node Ray may not come up within its own 30 seconds
    AUTOSCALER_METRIC_PORT=0 ray start "$@" "${ports[@]}" --temp-dir="$here" --block --disable-usage-stats \
      --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --object-store-memory=1000000000 \
      >>"$own/$(hostname).log" 2>&1 &
    ray=$!
    wait "$ray"
    wait "$ray" # the first one ends with the signal
    if [ -n "$ended" ] || [ -s "$here/ray_current_cluster" ]; then break; fi
  done
  rm -rf "$here"
}
export own
export -f node

driver='' head='' workers='' stopped='' code=1
finish() {
  trap '' TERM INT
  trap - EXIT
  for process in $driver $workers $head; do kill "$process" 2>/dev/null; done
  for process in $driver $workers $head; do wait "$process" 2>/dev/null; done
  rm -f "$own/auth_token"
  if [ "$code" = 0 ]; then rm -rf "$own"; fi # else what Ray said is worth a look
}
stop() { # the search saves and ends; again as often as the signal comes
  stopped=yes
  say "told to stop"
  if [ -n "$driver" ]; then kill -TERM "$driver" 2>/dev/null; fi
}
trap finish EXIT
trap stop TERM INT

address=$(getent ahostsv4 "$(hostname)" | awk '$1 !~ /^127/ {print $1; exit}')
read -r first _ <<<"$(hostname -I)"
# With the port 0 Ray takes a free one, and writes down which.
client=() # a server that not every Ray has, which takes no 0
if python -c 'import grpc' 2>/dev/null; then
  client=("--ray-client-server-port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')")
fi
rm -f "/tmp/hksd-$job/ray_current_cluster"
node --head --port=0 --include-dashboard=false --node-ip-address="${address:-$first}" ${client[@]+"${client[@]}"} &
head=$!
cluster=
for ((second = 0; second < 300; second++)); do
  kill -0 "$head" 2>/dev/null || break
  [ -z "$stopped" ] || exit 130
  cluster=$(cat "/tmp/hksd-$job/ray_current_cluster" 2>/dev/null) && [ -n "$cluster" ] && break
  sleep 1
done
if [ -z "$cluster" ]; then
  say "Ray does not start on the first node:"
  tail -n 20 "$own/$(hostname).log" >&2
  exit 1
fi
if ((${#nodes[@]} > 1)); then
  rest=("${nodes[@]:1}")
  srun --overlap --export=ALL --nodes=${#rest[@]} --ntasks=${#rest[@]} --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    --nodelist="$(IFS=,; echo "${rest[*]}")" --kill-on-bad-exit=0 bash -c "node --address=$cluster" &
  workers=$!
fi

# --- the search: on the first node, new or where it left off

if [ -e "$HKSD_RUNS/$name/space.yaml" ]; then
  if ((${SLURM_RESTART_COUNT:-0} > 0)); then set --; fi # it knows what it was told when it began
  set -- "$name" --resume "$@"
else
  set -- "$space" --name "$name" "$@"
fi
say "hksd search $* on ${#nodes[@]} node(s)"
hksd search "$@" --address "$cluster" &
driver=$!
while :; do
  wait "$driver"
  code=$?
  kill -0 "$driver" 2>/dev/null || break # else it was the signal that ended the waiting
done
driver=
finish
if ((code == 130)) && [ -n "$stopped" ]; then
  say "not finished; goes into the queue again (or by hand: sbatch the same file)"
  scontrol requeue "$job"
fi
exit $code
