"""Lines of a job's script that start its program, pass signals on, and decide by the run's status how the job ends."""

SIGNALS = """\
# Slurm signals this shell (B:). Bash handles signals only between commands, so the program runs in the background.
asked=
pid=
ask() {
  asked=$1
  say "$1: the run is asked to stop after its round"
  [ -z "$pid" ] || kill -USR1 "$pid" 2>/dev/null
}
trap 'ask USR1' USR1
trap 'ask TERM' TERM
clean() { :; }

again() {
  clean
  # Slurm may be ending the job by now. If it was preempted, Slurm queues it again and counts one restart more than we
  # know of. If it was cancelled, it must not be queued again.
  job=$(scontrol show job -o "$this") restarted=${job##* Restarts=}
  case $job in
    *" JobState=COMPLETING Reason=TimeLimit "*) ;;
    *" JobState=COMPLETING "*)
      if [ "${restarted%% *}" -gt "$restarts" ]; then say "Slurm queues it again"; exit 1; fi
      say "cancelled: not queued again"
      exit 1 ;;
  esac
  if [ "$restarts" -ge "$MAX_RESTARTS" ]; then
    say "restarted $restarts times, MAX_RESTARTS is $MAX_RESTARTS: not queued again. Submit a job to resume $RUN" >&2
    exit 1
  fi
  say "queues itself again, restart $((restarts + 1)) of at most $MAX_RESTARTS"
  trap - USR1 TERM
  # Requeueing ends this shell, too; until then it waits.
  scontrol requeue "$this" && sleep 300
  say "this job cannot be queued again. Submit another job to resume $RUN" >&2
  exit 1
}
"""


def launch(mpi: str) -> str:
    """Return the lines that set the launcher: `mpirun`, or srun with a kind of MPI."""
    if mpi == "mpirun":
        return """\
# --bind-to none, because a launcher that counts cores differently from Slurm would refuse to start.
# TERM without an earlier USR1 (preemption, scancel) leaves the ranks of Open MPI's mpirun half a second. That is too
# short for a checkpoint, so the run resumes from its last one (checkpoint.every).
launch=("${MPIRUN:-mpirun}" -n "$SLURM_NTASKS" --bind-to none)
"""
    return f"""\
# --cpus-per-task again, because srun does not inherit it from sbatch (since Slurm 22.05). --kill-on-bad-exit, because
# the other ranks would wait forever for one that was killed.
launch=(srun "--mpi=${{SRUN_MPI:-{mpi}}}" --kill-on-bad-exit=1 "--cpus-per-task=${{SLURM_CPUS_PER_TASK:-1}}")
# MPICH names its shared memory by job and step, and killed ranks leave it behind. A job that starts again on the same
# node therefore needs a new step number; otherwise MPI would not start.
for ((step = 0; step < restarts; step++)); do srun --mpi=none --nodes=1 --ntasks=1 true >/dev/null 2>&1; done
"""


def start_and_end(inside: str = "") -> str:
    """Return the lines that start the program and end the job; `inside` are the words that enter a container."""
    return _END.replace('"${program[@]}" &', f'{inside}"${{program[@]}}" &')


_END = """\
say "start, restart $restarts, nodes $SLURM_JOB_NODELIST, run $RUN"
before=$(cat "$RUN/status" 2>/dev/null)
code=0
if [ -z "$asked" ]; then
  "${launch[@]}" "${program[@]}" &
  pid=$!
  [ -z "$asked" ] || kill -USR1 "$pid" 2>/dev/null
  # A signal ends `wait`, but not the program.
  wait "$pid"; code=$?
  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; code=$?; done
  pid=
fi

# The launcher's exit code alone proves nothing: Open MPI's mpirun returns 0 after losing a node. A status from before
# this job, or of another job that works on this run, counts as "did not begin".
status() { sed -n "s/^$1: //p" "$RUN/status" 2>/dev/null; }
now=$(cat "$RUN/status" 2>/dev/null) state=$(status state) reason=$(status reason)
case $state in
  complete) [ "$now" != "$before" ] || [ "$code" -eq 0 ] || state=unbegun ;;
  running | stopped) [ "$now" != "$before" ] && [[ $(status process) == *", job $SLURM_JOB_ID" ]] || state=unbegun ;;
  *) [ "$now" != "$before" ] || state=unbegun ;;
esac
if [ "$state" = unbegun ]; then
  say "the run did not begin; the launcher returned $code"
else
  say "the run is $state${reason:+ ($reason)}, $(status round) of $(status rounds) rounds; the launcher returned $code"
fi
case $state:$reason in
  complete:*) clean; exit 0 ;;
  # The user asked it to stop.
  "stopped:file STOP") clean; exit 0 ;;
  stopped:USR1 | stopped:TERM | stopped:max_wall | "stopped:launcher gone") again ;;
  # Killed before it could write a checkpoint: it resumes from its last one.
  running:* | unbegun:*) [ -z "$asked" ] || again ;;
  *) [ "$asked" != TERM ] || again ;;
esac
if [ "$state" = running ]; then
  # All ranks were killed, so none was left to record the failure.
  sed -e 's/^state: .*/state: failed/' -e "s/^reason: .*/reason: all ranks were killed; the launcher returned $code/" \
    "$RUN/status" >"$RUN/status.$SLURM_JOB_ID" && mv -f "$RUN/status.$SLURM_JOB_ID" "$RUN/status"
fi
say "the run did not finish. The ranks' output is in $RUN/log" >&2
clean
[ "$code" -ne 0 ] || code=1
exit "$code"
"""
