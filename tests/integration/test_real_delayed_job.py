"""delayed_job as a smart daemon: a Ruby script that puts itself into the background.

It overwrites its command line, so that only lowsuper's record tells what it is.
"""

import contextlib
import itertools
import os
import sqlite3

import pytest
from masters import find_program, wait_text
from real_programs import go_through_all, run_client

SCRIPT = """\
#!/usr/bin/env ruby
# What a Rails application has as script/delayed_job, without Rails.
require File.expand_path("../environment", __dir__)
require "delayed/command"
Delayed::Command.new(ARGV).daemonize
"""

ENVIRONMENT = """\
require "active_record"
require "delayed_job_active_record"
require "logger"

ActiveRecord::Base.configurations = {
  "production" => {
    "adapter" => "sqlite3", "database" => "#{__dir__}/jobs.sqlite3", "timeout" => 5000,
  },
}
ActiveRecord::Base.establish_connection(:production)
Delayed::Worker.sleep_delay = 0.1

Note = Struct.new(:path) do
  def perform
    File.write(path, "#{Process.pid}\\n")
  end
end
"""

TABLE = """\
CREATE TABLE delayed_jobs (
  id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
  priority INTEGER DEFAULT 0 NOT NULL,
  attempts INTEGER DEFAULT 0 NOT NULL,
  handler TEXT NOT NULL,
  last_error TEXT,
  run_at DATETIME, locked_at DATETIME, failed_at DATETIME,
  locked_by VARCHAR, queue VARCHAR,
  created_at DATETIME, updated_at DATETIME
)
"""

CLIENT = """\
require "./environment"
$stdin.each_line { |line| Delayed::Job.enqueue(Note.new(line.strip)) }
"""


@pytest.fixture
def application(masters):
    """Return the directory of an application with a script/delayed_job."""
    find_program("ruby")
    masters.allow_survivors()
    directory = masters.directory
    for name in ("script", "log"):
        (directory / name).mkdir()
    (directory / "environment.rb").write_text(ENVIRONMENT)
    # Before there are two who would make it.
    with contextlib.closing(sqlite3.connect(directory / "jobs.sqlite3")) as database:
        database.execute(TABLE)
    script = directory / "script" / "delayed_job"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    return directory


def test_delayed_job_runs_jobs_before_and_after_its_master_is_replaced(masters, application):
    """The example of uWSGI's documentation, but for the directory."""
    pidfile = application / "tmp" / "pids" / "delayed_job.pid"
    numbers = itertools.count()

    def work():
        """Put a job into the database and wait until the worker has done it."""
        result = application / f"result-{next(numbers)}"
        put(result)
        assert wait_text(result, r"^(\d+)$")[1] == pidfile.read_text().strip()

    environ = {**os.environ, "RAILS_ENV": "production"}
    with run_client("ruby", "-e", CLIENT, cwd=application, env=environ) as put:
        go_through_all(
            masters,
            "env = RAILS_ENV=production\n"
            "rbrequire = bundler/setup\n"
            "rack = config.ru\n"
            f"chdir = {application}\n"
            "smart-attach-daemon = %(chdir)/tmp/pids/delayed_job.pid"
            " %(chdir)/script/delayed_job start\n",
            name="delayed_job",
            pidfile=pidfile,
            work=work,
        )
