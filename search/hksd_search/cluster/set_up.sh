#!/usr/bin/env bash
# Prepares a node of a cluster: secrets, environment, shared folder, Python environment. Once more, it changes nothing.
#
#   set_up.sh head|worker hksd==VERSION ray==VERSION python==VERSION
#
# A node with another version of one of these ends with a sentence, before Ray starts on it.
# Reads ~/.hksd/auth_token and, where they are there, ~/.hksd/cluster.env and ~/.hksd/mlflow_password. The code is in
# ~/hksd-source: the project's folder, or a wheel.
#
#   HKSD_VENV   the Python environment   (~/venv). One that is there already, and was not made here, is yours: it is
#               looked at and never changed
#   HKSD_RUNS   the folder of all runs   (~/runs)
#   HKSD_EFS    an EFS to mount there, by its DNS name;   HKSD_NFS   an NFS export to mount there, HOST:/PATH
set -euo pipefail
umask 077

fail() { echo "set_up on $(hostname): $*" >&2; exit 1; }

role=${1:-}
case $role in head | worker) shift ;; *) fail "say head or worker, then the versions; got '$role'" ;; esac
for wanted in "$@"; do declare "want_${wanted%%==*}=${wanted#*==}"; done
: "${want_hksd:?}" "${want_ray:?}" "${want_python:?}"
own=~/.hksd source=~/hksd-source
[ -f $own/cluster.env ] && { set -a; . $own/cluster.env; set +a; }
venv=${HKSD_VENV:-$HOME/venv}
runs=${HKSD_RUNS:-$HOME/runs}

# --- secrets: files that only this user can read

[ -s $own/auth_token ] || fail "there is no ~/.hksd/auth_token; docs/cluster.md says how to make it, once"
# The head makes MLflow's password before Ray starts there; workers get it with the rest of the folder.
if [ $role = head ] && [ ! -s $own/mlflow_password ]; then
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >$own/mlflow_password
fi
chmod 700 $own
find $own -type f -exec chmod 600 {} +

# --- what every shell of a node knows. `ray start` turns the token on only if told so here.

cat >~/.hksd-env.sh <<ENV
set -a; [ ! -f ~/.hksd/cluster.env ] || . ~/.hksd/cluster.env; set +a
export PATH=$(printf %q "$venv/bin"):"\$PATH" HKSD_RUNS=$(printf %q "$runs")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="\$HOME/.hksd/auth_token"
export RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
[ ! -s ~/mlflow/uri ] || export MLFLOW_TRACKING_URI="\$(cat ~/mlflow/uri)"
[ ! -s ~/.hksd/mlflow_password ] ||
  export MLFLOW_TRACKING_USERNAME=hksd MLFLOW_TRACKING_PASSWORD="\$(cat ~/.hksd/mlflow_password)"
ENV
grep -qsxF '. ~/.hksd-env.sh' ~/.bashrc || echo '. ~/.hksd-env.sh' >>~/.bashrc

# --- packages of the system, where something needs them

packages=()
if [ ! -x "$venv/bin/python" ] && ! python3 -c 'import ensurepip' 2>/dev/null; then packages+=(python3-venv); fi
if [ -n "${HKSD_EFS:-}${HKSD_NFS:-}" ] && [ ! -x /sbin/mount.nfs ]; then packages+=(nfs-common); fi
if [ ${#packages[@]} -gt 0 ]; then
  for try in 1 2 3 4 5 6; do # a fresh machine may hold apt's lock for minutes
    sudo apt-get -qq update &&
      sudo DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a apt-get -qq install -y "${packages[@]}" && break
    [ $try -lt 6 ] || fail "cannot install ${packages[*]}; install them yourself and try again"
    sleep 20
  done
fi

# --- the folder of all runs. Trials own their checkpoint folders as plain files, so a search over several nodes needs a
# file system that all of them see at the same path; S3 is none.

mkdir -p "$runs"
export_of= options=rw
if [ -n "${HKSD_EFS:-}" ]; then
  export_of=$HKSD_EFS:/ options=nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport
elif [ -n "${HKSD_NFS:-}" ]; then
  export_of=$HKSD_NFS options=hard,timeo=600,retrans=2
fi
if [ -n "$export_of" ]; then
  grep -q " $runs nfs " /etc/fstab ||
    echo "$export_of $runs nfs $options,_netdev,nofail 0 0" | sudo tee -a /etc/fstab >/dev/null
  mountpoint -q "$runs" || sudo mount "$runs"
  sudo chown "$(id -u):$(id -g)" "$runs"
fi

# --- the Python environment

if [ ! -x "$venv/bin/python" ]; then
  interpreter=
  for name in "python${want_python%.*}" python3; do
    found=$($name -c 'import platform; print(platform.python_version())' 2>/dev/null) || continue
    [ "$found" = "$want_python" ] && interpreter=$name && break
  done
  [ -n "$interpreter" ] || fail "the cluster wants Python $want_python, python3 here is ${found:-not there}. Install" \
    "that one, or write the cluster's file with --python ${found:-VERSION} if all nodes have it"
  "$interpreter" -m venv "$venv"
  touch "$venv/.of-hksd"
fi
# The same files and versions as last time need no installing.
if [ -e "$venv/.of-hksd" ]; then
  now="$* $(find $source -type f -not -path '*/build/*' -not -path '*.egg-info/*' -not -path '*/__pycache__/*' -print0 |
    sort -z | xargs -0 sha256sum | sha256sum)"
  if [ "$now" != "$(cat "$venv/.of-hksd")" ]; then
    rm -rf $source/build
    what=$source
    for wheel in $source/hksd-*.whl; do [ -f "$wheel" ] && what=$wheel; done
    # Workers take the very versions that the head has, of every package, also if they join days later.
    same=()
    if [ $role = worker ] && [ -s $own/constraints.txt ]; then same=(--constraint $own/constraints.txt); fi
    "$venv/bin/pip" install --quiet --disable-pip-version-check ${same[@]+"${same[@]}"} \
      "ray[default]==$want_ray" "$what[cluster]" || fail "pip could not install hksd; what it said is above"
    echo "$now" >"$venv/.of-hksd"
  fi
fi
why=$("$venv/bin/python" "$(dirname "$0")/versions.py" "$@" 2>&1) || fail "in $venv $why"
if [ $role = head ] && [ -e "$venv/.of-hksd" ]; then
  "$venv/bin/python" -m pip freeze --quiet --disable-pip-version-check --exclude hksd | grep '==' >$own/constraints.txt || true
fi
