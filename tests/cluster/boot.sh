#!/usr/bin/env bash
# The first process of a machine, in namespaces of its own (machines.py): builds the file system that the machine sees,
# starts sshd, and takes in orphans, as any process 1 must.
#
#   boot.sh NAME FOLDER sshd|quiet
#
# FOLDER/mounts has a line for each part of the file system, in their order: KIND TARGET SOURCE, where KIND is
#   tmpfs  an empty folder in memory (SOURCE: its options)      disk  a folder of the host
#   image  a folder or file of the host, not to be written      link  a symbolic link
set -eu
name=$1 folder=$2 kind=$3
root=$folder/root

hostname "$name"
mount --make-rprivate /
mount -t tmpfs -o mode=755 machine "$root"
while read -r how target source; do
  at=$root$target
  if [ "$how" = image ] && [ -f "$source" ]; then
    [ -e "$at" ] || { mkdir -p "${at%/*}" && : >"$at"; }
  elif [ "$how" = link ]; then
    mkdir -p "${at%/*}"
  else
    mkdir -p "$at"
  fi
  case $how in
    tmpfs) mount -t tmpfs -o "$source" tmpfs "$at" ;;
    disk) mount --bind "$source" "$at" ;;
    image) mount --bind "$source" "$at" && mount -o remount,bind,ro "$at" ;;
    link) ln -s "$source" "$at" ;;
  esac
done <"$folder/mounts"
mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/old"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev" # no GPU of the host is in it
for device in null zero full random urandom tty; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777,size=2g tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
cd "$root"
pivot_root . old
umount -l /old
rmdir /old

ulimit -n 65536 2>/dev/null || true
if [ "$kind" = sshd ]; then
  mkdir -p /run/sshd
  /usr/sbin/sshd -D -e -f /machine/sshd_config &
else
  sleep infinity &
fi
: >/run/booted
wait
