"""Run commands in forks of one process that has imported what they import.

A fork is a process like any other, with its own arguments, folder, output and exit status,
without the seconds of importing. The requests come as lines of JSON, each of which is
answered with a line, the exit status. Not imported here is what defines flags by the name
of the command, jobs/command_line.py.
"""

import json
import os
import runpy
import signal
import sys

import grain  # noqa: F401
import matplotlib.backends.backend_agg  # noqa: F401
import ml_collections.config_flags  # noqa: F401
import sklearn.datasets  # noqa: F401
import tensorboardX.event_file_writer  # noqa: F401

import diffusion_jax.jobs.cascade
import diffusion_jax.jobs.labels
import diffusion_jax.jobs.likelihood
import diffusion_jax.jobs.quality
import diffusion_jax.jobs.sweep
import diffusion_jax.runtime.start
import diffusion_jax.training.smoke
import diffusion_jax.training.train  # noqa: F401


def next_request():
    """Return a request, in a fork of its own for each; the server itself never returns."""
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            return json.loads(line)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(status, flush=True)
    sys.exit()


request = next_request()
os.chdir(request["cwd"])
for descriptor, path in enumerate([os.devnull, *request["said"]]):
    opened = os.open(path, os.O_RDWR | os.O_CREAT)
    os.dup2(opened, descriptor)
    os.close(opened)
signal.alarm(600)  # The alarm ends what hangs.
sys.argv = request["args"]
runpy.run_path(sys.argv[0], run_name="__main__")
