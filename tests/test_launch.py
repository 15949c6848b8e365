"""The launch scripts, with stand-ins for python and for the commands of a scheduler."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from command import ROOT

LAUNCH = ROOT / "launch"
# Notes its arguments and what tells a process its place; exits with the next code of its file.
STAND_IN = """#!{python}
import fcntl, json, os, sys
with open({notes!r}, "a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    kept = {{key: os.environ[key] for key in {keys!r} if key in os.environ}}
    file.write(json.dumps([{name!r}, sys.argv[1:], kept]) + "\\n")
    file.flush()
    file.seek(0)
    before = sum(json.loads(line)[0] == {name!r} for line in file) - 1
codes = {codes!r}
sys.exit(codes[min(before, len(codes) - 1)])
"""
# Notes that it has begun, and at a signal, after a moment, that it has saved.
SAVING = """#!{python}
import fcntl, json, os, signal, sys, time

def note(*record):
    with open({notes!r}, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps([*record, {{}}]) + "\\n")

def save(signum, frame):
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_DFL)  # a second one ends it
    time.sleep(0.5)
    note("saved", [signum])
    os._exit(128 + signum)

for each in (signal.SIGTERM, signal.SIGINT):
    signal.signal(each, save)
note("begun", [])
while True:
    signal.pause()
"""
KEYS = (
    *("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
    "CUDA_VISIBLE_DEVICES",
)


class Cluster:
    """A folder of stand-ins that comes first in PATH."""

    def __init__(self, folder):
        self.folder, self.notes = folder, folder / "notes"

    def write(self, name, text):
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def add(self, name, codes=(0,)):
        kept = {"python": sys.executable, "notes": str(self.notes), "keys": KEYS}
        self.write(name, STAND_IN.format(**kept, name=name, codes=codes))

    def environment(self, more):
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "SLURM_SUBMIT_DIR": str(ROOT), **more}

    def run(self, script, *arguments, **environment):
        return subprocess.run(
            ["bash", str(LAUNCH / script), *arguments],
            env=self.environment(environment),
            capture_output=True,
            text=True,
            timeout=400,
        )

    def start(self, script, **environment):
        return subprocess.Popen(
            ["bash", str(LAUNCH / script)],
            env=self.environment(environment),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def called(self, name):
        """[(arguments, what the environment told)] of a command's calls."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [each[1:] for each in map(json.loads, lines) if each[0] == name]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)
    return Cluster(tmp_path)


def test_a_run_here_is_started_again_after_an_interruption(cluster):
    cluster.add("python", (143, 0))
    assert cluster.run("local.sh", "--config=c").returncode == 0
    assert cluster.called("python") == [[["-m", "asap_jax.main", "--config=c"], {}]] * 2


@pytest.mark.parametrize("code", [1, 2, 75, 130])
def test_a_run_here_that_fails_is_not(cluster, code):
    cluster.add("python", (code,))
    assert cluster.run("local.sh").returncode == code
    assert len(cluster.called("python")) == 1


def test_processes_here_are_started_again_when_one_is_gone(cluster):
    cluster.add("python", (137, 75, 0))
    done = cluster.run("local.sh", "--config=c", PROCESSES="2", CUDA_VISIBLE_DEVICES_1="2,3")
    assert done.returncode == 0, done.stderr
    calls = sorted(cluster.called("python"), key=lambda call: call[1]["JAX_PROCESS_ID"])
    assert [call[0] for call in calls] == [
        ["-m", "asap_jax.main", "--distributed", "--config=c"]
    ] * 4
    shared = {"JAX_COORDINATOR_ADDRESS": "localhost:12355", "JAX_NUM_PROCESSES": "2"}
    assert calls[0][1] == calls[1][1] == {**shared, "JAX_PROCESS_ID": "0"}
    told = {**shared, "JAX_PROCESS_ID": "1", "CUDA_VISIBLE_DEVICES": "2,3"}
    assert calls[2][1] == calls[3][1] == told


def test_processes_here_that_are_refused_are_not(cluster):
    cluster.add("python", (2, 75))
    assert cluster.run("local.sh", PROCESSES="2").returncode == 2
    assert len(cluster.called("python")) == 2


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        *((143, 0, True), (75, 0, True), (137, 3, True), (143, 99, True)),
        *((134, 20, False), (0, 0, False), (2, 0, False)),
    ],
)
def test_a_job_of_several_nodes_is_queued_again(cluster, code, restarts, requeued):
    cluster.add("srun", (code,))
    cluster.add("scontrol")
    done = cluster.run(
        "slurm_nodes.sh", "--config=c", SLURM_JOB_ID="77", SLURM_RESTART_COUNT=str(restarts)
    )
    assert done.returncode == code
    ((arguments, _),) = cluster.called("srun")
    assert "python -m asap_jax.main --distributed" in arguments[-3]
    assert arguments[-2:] == ["asap_jax", "--config=c"]
    assert cluster.called("scontrol") == [[["requeue", "77"], {}]] * requeued


SRUN = """#!/usr/bin/env bash
shift 2
worst=0
export SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & tasks[i]=$!; done
for i in 0 1; do wait "${tasks[i]}"; code=$?; [ "$code" -gt "$worst" ] && worst=$code; done
exit "$worst"
"""


@pytest.mark.parametrize(("codes", "requeued"), [((2, 134), False), ((137, 75), True)])
def test_a_job_in_which_a_process_fails_by_itself_is_not_queued_again(cluster, codes, requeued):
    """The other one loses it and ends with a larger code, which is what `srun` reports."""
    cluster.add("python", codes)
    cluster.add("scontrol")
    cluster.write("srun", SRUN)
    done = cluster.run("slurm_nodes.sh", "--config=c", SLURM_JOB_ID="77")
    assert done.returncode == max(codes), done.stderr
    assert [call[0][-1] for call in cluster.called("python")] == ["--config=c"] * 2
    assert len(cluster.called("scontrol")) == requeued
    assert not (ROOT / ".failed-77").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_to_the_script_stops_a_run_here(cluster, signum, processes):
    """Each process gets one signal, saves, and none is started again."""
    cluster.write("python", SAVING.format(python=sys.executable, notes=str(cluster.notes)))
    running = cluster.start("local.sh", PROCESSES=str(processes))
    while len(cluster.called("begun")) < processes:
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signum)
    assert running.wait(30) == 128 + signum
    assert [call[0] for call in cluster.called("saved")] == [[int(signum)]] * processes
    assert len(cluster.called("begun")) == processes


def test_a_process_that_is_lost_again_and_again_ends_a_run_here(cluster):
    cluster.add("python", (134,))
    assert cluster.run("local.sh", PROCESSES="2", RESTARTS="3").returncode == 134
    assert len(cluster.called("python")) == 2 * 4


def test_a_job_of_one_gpu_is_queued_again(cluster):
    cluster.add("python", (143,))
    cluster.add("scontrol")
    assert cluster.run("slurm.sh", "--config=c", SLURM_JOB_ID="77").returncode == 143
    assert cluster.called("scontrol") == [[["requeue", "77"], {}]]


def test_an_array_has_a_method_and_a_seed_for_each_job(cluster):
    cluster.add("python")
    for job in range(6):
        done = cluster.run(
            *("slurm_array.sh", "--config.data.dir=d"),
            **{"METHODS": "asap darts", "SEEDS": "3", "SIZE": "digits"},
            **{"SLURM_ARRAY_TASK_ID": str(job), "SLURM_JOB_ID": "77"},
        )
        assert done.returncode == 0, done.stderr
    expected = [
        [
            *("-m", "asap_jax.main", f"--config=configs/search.py:digits,{method}"),
            *(f"--config.seed={seed}", f"--workdir=runs/digits-{method}-{seed}"),
            "--config.data.dir=d",
        ]
        for method in ("asap", "darts")
        for seed in range(3)
    ]
    assert [call[0] for call in cluster.called("python")] == expected
    done = cluster.run("slurm_array.sh", METHODS="asap", SEEDS="3", SLURM_ARRAY_TASK_ID="3")
    assert done.returncode == 2
    assert "--array=0-2" in done.stderr


@pytest.mark.slow
def test_processes_meet_by_what_slurm_tells(cluster, tmp_path):
    """`srun` as two tasks on this machine, which train; JAX reads SLURM's environment."""
    cluster.write("srun", SRUN)
    cluster.write("python", f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')
    folder = tmp_path / "run"
    done = cluster.run(
        *("slurm_nodes.sh", "--config=configs/search.py:tiny", "--mode=train"),
        *("--config.genotype=ASAP", "--config.train.channels=4", "--config.train.cells=3"),
        *("--config.train.epochs=1", f"--workdir={folder}"),
        **{"SLURM_JOB_ID": str(os.getpid()), "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((folder / "results.json").read_text())["devices"] == {"train": 2}


def test_the_jobs_of_kubernetes_say_how_many_processes_meet_where():
    (job,) = yaml.safe_load_all((LAUNCH / "kubernetes_nodes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = job["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    told = {each["name"]: each.get("value") for each in container["env"]}
    assert spec["completions"] == spec["parallelism"] == int(told["JAX_NUM_PROCESSES"])
    assert spec["completionMode"] == "Indexed"  # what JAX_PROCESS_ID is read from
    name, where = job["metadata"]["name"], told["JAX_COORDINATOR_ADDRESS"]
    assert where == f"{name}-{replicated['name']}-0-0.{name}:8476"
    assert container["ports"] == [{"containerPort": 8476}]
    assert "--distributed" in container["command"]
    (single,) = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    assert (single["apiVersion"], single["kind"]) == ("batch/v1", "Job")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_the_scripts_pass_shellcheck():
    scripts = sorted(map(str, LAUNCH.glob("*.sh")))
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert scripts
    assert done.returncode == 0, done.stdout
