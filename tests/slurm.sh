#!/bin/sh
# A Slurm job array over a file of prompts, on a cluster of this one machine: slurmctld, slurmd and munged, started here
# with their files in a temporary folder and stopped at the end. Needs root, and Debian's slurmctld, slurmd, munge.
set -u
build=${BUILD:-build}
bin=$PWD/$build/bin
case $build in /*) bin=$build/bin ;; esac
for p in slurmctld slurmd sbatch munged; do
    command -v $p >/dev/null || { echo "slurm: no $p here: apt-get install slurmctld slurmd slurm-client munge" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "slurm: slurmd wants to be started by root" >&2; exit 1; }
tmp=$(mktemp -d "${TMPDIR:-/tmp}/diffpak-slurm.XXXXXX")
chmod 755 "$tmp"
stop() {
    for p in slurmd slurmctld munged; do [ -s "$tmp/$p.pid" ] && kill "$(cat "$tmp/$p.pid")" 2>/dev/null; done
    sleep 1
    rm -rf "$tmp"
}
trap stop EXIT
host=$(hostname -s)
mkdir "$tmp/state" "$tmp/spool" "$tmp/run" "$tmp/munge"

dd if=/dev/urandom of="$tmp/munge/key" bs=1024 count=1 2>/dev/null
chmod 600 "$tmp/munge/key"
munged --force --socket="$tmp/munge/socket" --key-file="$tmp/munge/key" --pid-file="$tmp/munged.pid" \
    --log-file="$tmp/munge/log" --seed-file="$tmp/munge/seed" || exit 1

cat >"$tmp/slurm.conf" <<C
ClusterName=diffpak
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=36817
SlurmdPort=36818
AuthType=auth/munge
AuthInfo=socket=$tmp/munge/socket
CredType=cred/munge
SlurmUser=root
StateSaveLocation=$tmp/state
SlurmdSpoolDir=$tmp/spool
SlurmctldPidFile=$tmp/slurmctld.pid
SlurmdPidFile=$tmp/slurmd.pid
SlurmctldLogFile=$tmp/slurmctld.log
SlurmdLogFile=$tmp/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
C
SLURM_CONF=$tmp/slurm.conf
export SLURM_CONF
slurmctld -c -f "$SLURM_CONF" || { tail -n 5 "$tmp/slurmctld.log" >&2; exit 1; }
slurmd -c -f "$SLURM_CONF" || { tail -n 5 "$tmp/slurmd.log" >&2; exit 1; }
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    sinfo -h -o %T 2>/dev/null | grep -q idle && break
    sleep 1
done
sinfo -h -o %T | grep -q idle || { echo "slurm: the node did not come up" >&2; tail -n 5 "$tmp"/slurm*.log >&2; exit 1; }

model=$tmp/model.dpk
"$bin/diffpak-convert" models/shapes-xl -o "$model" -q || exit 1
for i in 1 2 3 4 5 6 7 8 9 10 11; do echo "{\"prompt\": \"a blue star\", \"seed\": $i}"; done >"$tmp/prompts"
sbatch --wait --array=1-4 -o "$tmp/task-%a.log" \
    --wrap "'$bin/diffpak' generate '$model' --prompts '$tmp/prompts' -o '$tmp/array' --steps 4 --threads 1" >"$tmp/out" 2>&1
status=$?
[ $status -eq 0 ] || { echo "slurm: the job failed: exit status $status" >&2; cat "$tmp/out" "$tmp"/task-*.log >&2; exit 1; }
cat "$tmp"/task-*.log
[ "$(ls "$tmp/array" | grep -c manifest-.-of-4.jsonl)" -eq 4 ] || { echo "slurm: manifests: $(ls "$tmp/array")" >&2; exit 1; }
[ "$(cat "$tmp"/array/manifest-*.jsonl | wc -l)" -eq 11 ] || { echo "slurm: not every picture is in one manifest" >&2; exit 1; }

"$bin/diffpak" generate "$model" --prompts "$tmp/prompts" -o "$tmp/one" --steps 4 -q || exit 1
rm "$tmp"/array/manifest-* "$tmp/one/manifest.jsonl"
diff -r "$tmp/array" "$tmp/one" || exit 1
echo "slurm: 4 tasks painted 11 pictures, the same as one run does"
