#!/bin/sh
# Sets a bare Debian 12 or Ubuntu 24.04 up for lowsuper, as root, from a checkout:
#
#   sh vagrant/provision.sh run [ARGUMENT...]   set up, then run lowsuper in the foreground: with
#                                               lowsuper/examples/quickstart.ini, or as told
#   sh vagrant/provision.sh test [ARGUMENT...]  set up, then run every check and all tests, or
#                                               only pytest with the arguments
#   sh vagrant/provision.sh setup               set up for both, run nothing
#   sh vagrant/provision.sh install             install into /opt/lowsuper, and the command as
#                                               /usr/local/bin/lowsuper; the checkout can go then
#
# What is there already is left alone: a second run installs nothing and needs no network. The
# Debian packages' own services are neither started nor enabled, and PostgreSQL gets no cluster.
# `run` and `install` need neither the packages nor the Python modules of the tests. Variables:
# PYTHON, the interpreter (default python3), and LOWSUPER_VENV, the virtual environment (default
# .venv in the checkout).

set -eu

build_packages='gcc libc6-dev libcap-dev'  # libcap-dev: python-prctl is compiled against it
example_packages='memcached redis-server'
test_packages='procps curl strace uwsgi-core'  # uwsgi-core: tests compare with the original
# The real programs that tests run, besides the examples' and what comes from PyPI.
test_packages="$test_packages nginx postgresql systemd"  # systemd: systemd-notify; starts nothing
test_packages="$test_packages busybox-static dropbear-bin mmdebstrap etcd-server"
test_packages="$test_packages ruby-daemons ruby-delayed-job-active-record ruby-sqlite3"
# Virtual machines of the tests: an emulator, and the first of these kernels that there is. It is
# unpacked below the environment, and not installed.
test_packages="$test_packages qemu-system-x86 zstd"
test_kernels='linux-image-6.12-cloud-amd64 linux-image-cloud-amd64'
services='memcached redis-server nginx postgresql etcd'

root=$(cd "$(dirname "$0")/.." && pwd -P)
venv=${LOWSUPER_VENV:-$root/.venv}
python=${PYTHON:-python3}
policy=/usr/sbin/policy-rc.d
clusters=/etc/postgresql-common/createcluster.d/lowsuper.conf
policy_mark='made by lowsuper/vagrant/provision.sh'
log=

say() {
  printf 'provision: %s\n' "$*" >&2
}

die() {
  say "$*"
  exit 1
}

# Remove what must not outlast the script; called by hand before an exec, which runs no trap.
clean_up() {
  [ -z "$log" ] || rm -f "$log"
  log=
  if grep -qs "$policy_mark" "$policy"; then rm -f "$policy"; fi
  rm -f "$clusters"
}

# run_step WHAT ADVICE COMMAND...: run quietly; if it fails, show the end of its output, what
# failed, and what to do.
run_step() {
  what=$1 advice=$2
  shift 2
  say "$what"
  "$@" >"$log" 2>&1 </dev/null && return
  status=$?
  tail -n 40 "$log" >&2
  die "failed with status $status: $what; $advice"
}

# Print what identifies the interpreter $1: version, and the real program behind environments.
identify_python() {
  "$1" -c 'import os, sys; print(sys.version, os.path.realpath(sys.executable))' 2>/dev/null
}

# Check the chosen interpreter, make $python its real path, and add the packages it needs.
require_python() {
  command -v "$python" >/dev/null ||
    die "there is no $python: apt-get install python3, or name one with PYTHON=/path/to/python3"
  found=$("$python" -c '
import os, sys, sysconfig
if sys.version_info < (3, 11):
    kind = "old"
elif sys.base_prefix == "/usr":
    kind = "debian"
else:
    try:
        import ensurepip, venv
        kind = os.path.exists(sysconfig.get_path("include") + "/Python.h") and "whole"
    except ImportError:
        kind = False
print(kind or "partial", sys.executable)') || die "$python cannot run a program"
  case $found in
  old\ *)
    die "$python is $("$python" -V 2>&1), lowsuper needs 3.11 or later:" \
      "name another with PYTHON=/path/to/python3"
    ;;
  partial\ *)
    die "$python lacks the modules venv and ensurepip or the header Python.h:" \
      "install its development files, or name another with PYTHON=/usr/bin/python3"
    ;;
  # Debian splits its own Python into packages; any other one is whole.
  debian\ *) build_packages="$build_packages python3-dev python3-venv" ;;
  esac
  python=${found#* }
}

# Print those of the Debian packages named that are not installed.
list_missing() {
  command -v dpkg-query >/dev/null ||
    die 'this is neither Debian nor Ubuntu: install a C compiler and the headers of libc, libcap' \
      'and Python, then "python3 -m venv .venv && .venv/bin/pip install ."'
  installed=" $(dpkg-query -W -f '${Package}=${db:Status-Status} ' "$@" 2>/dev/null || :)"
  for package; do
    case $installed in
    *" $package=installed "*) ;;
    *) printf '%s ' "$package" ;;
    esac
  done
}

run_apt() {
  apt-get -qq -o DPkg::Lock::Timeout=300 "$@"
}

install_packages() {
  missing=$(list_missing "$@")
  [ -n "$missing" ] || return 0
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\n# %s: starts no service while packages are installed.\nexit 101\n' \
      "$policy_mark" >"$policy"
    chmod 755 "$policy"
  fi
  case " $missing" in
  *' postgresql '*)
    mkdir -p "${clusters%/*}"
    printf '# %s: makes no cluster when the server is installed.\ncreate_main_cluster = false\n' \
      "$policy_mark" >"$clusters"
    ;;
  esac
  export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
  run_step 'reading the lists of Debian packages' \
    'check the network and /etc/apt/sources.list, then run this again' run_apt update
  # shellcheck disable=SC2086
  run_step "installing Debian packages: $missing" \
    "try \"apt-get install $missing\" by hand" run_apt install --no-install-recommends $missing
  unset DEBIAN_FRONTEND NEEDRESTART_SUSPEND
  # Only what was not there before has its service switched off.
  for service in $services; do
    case " $missing" in
    *" $service "*)
      run_step "leaving the service $service switched off" \
        "try \"update-rc.d $service disable\" by hand" update-rc.d "$service" disable
      ;;
    esac
  done
  clean_up
  open_log
}

open_log() {
  log=$(mktemp "${TMPDIR:-/tmp}/lowsuper-provision.XXXXXX")
}

# make_venv DIRECTORY: with the chosen interpreter; one of another interpreter is made anew.
make_venv() {
  if [ -e "$1/bin/python" ] &&
    [ "$(identify_python "$1/bin/python")" = "$(identify_python "$python")" ]; then
    return
  fi
  clear=
  [ ! -e "$1/pyvenv.cfg" ] || clear=--clear
  # shellcheck disable=SC2086
  run_step "making the virtual environment $1" \
    "remove $1 and run this again" "$python" -m venv $clear "$1"
}

# pip_install ENVIRONMENT ARGUMENT...
pip_install() {
  environment=$1
  shift
  "$environment/bin/python" -m pip --disable-pip-version-check --no-input install "$@"
}

# Print a digest of all that the installed extension and environment depend on.
digest_inputs() {
  {
    identify_python "$python"
    uname -m
    printf '%s\n' "$root"
    cat "$root/pyproject.toml"
    find "$root/csrc" -type f | LC_ALL=C sort | tr '\n' '\0' | xargs -0 cat
  } | sha256sum
}

# set_up LEVEL: `run` or `test`; an environment that was set up for tests is good for both. It
# is an editable install, which builds into the checkout and always runs what is there.
set_up() {
  stamp=$venv/lowsuper-stamp
  digest=$(digest_inputs)
  if [ -e "$stamp" ] && [ -e "$root/lowsuper/lowsuper-helper" ]; then
    case $1,$(cat "$stamp") in
    "$1,$1 $digest" | "run,test $digest") return ;;
    esac
  fi
  make_venv "$venv"
  rm -f "$stamp"
  if [ "$1" = test ]; then
    what="${root}[test]" warnings_are_errors=ON
  else
    what="${root}[legion]" warnings_are_errors=OFF
  fi
  run_step "installing lowsuper into $venv" \
    'see the lines above; without a network, install once with it' \
    pip_install "$venv" "--config-settings=cmake.define.LOWSUPER_WERROR=$warnings_are_errors" \
    --editable "$what"
  printf '%s %s\n' "$1" "$digest" >"$stamp"
}

# Unpack a kernel for the virtual machines of the tests into $venv/vm.
unpack_kernel() {
  [ ! -e "$venv/vm/boot" ] || return 0
  # shellcheck disable=SC2086
  kernel=$(apt-cache depends $test_kernels 2>/dev/null |
    awk '/Depends: linux-image-[0-9]/ {print $2; exit}')
  if [ -z "$kernel" ]; then
    say "there is no $test_kernels here: the tests in virtual machines are skipped"
    return
  fi
  rm -rf "$venv/vm.part"
  mkdir "$venv/vm.part"
  run_step "unpacking $kernel for virtual machines" \
    'check the network, or run apt-get update' sh -ec '
cd "$1"
apt-get -qq -o APT::Sandbox::User=root download "$2"
dpkg-deb -x ./*.deb .
rm ./*.deb' sh "$venv/vm.part" "$kernel"
  mv "$venv/vm.part" "$venv/vm"
}

install_lowsuper() {
  make_venv /opt/lowsuper
  run_step 'installing lowsuper into /opt/lowsuper' \
    'see the lines above' pip_install /opt/lowsuper --upgrade "${root}[legion]"
  link=/usr/local/bin/lowsuper
  if [ -e "$link" ] && [ "$(readlink "$link")" != /opt/lowsuper/bin/lowsuper ]; then
    say "$link is something else and stays as it is: the command is /opt/lowsuper/bin/lowsuper"
  else
    mkdir -p "${link%/*}"
    ln -sf /opt/lowsuper/bin/lowsuper "$link"
    say "installed: $link"
  fi
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
run | test | setup | install) ;;
*)
  sed -n '2,/^[^#]*$/s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac
[ "$(id -u)" -eq 0 ] || die "this has to run as root: sudo sh $0 $command"

trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
clean_up
open_log
require_python

# shellcheck disable=SC2086
case $command in
run)
  install_packages $build_packages $example_packages
  set_up run
  clean_up
  [ $# -gt 0 ] || set -- "$root/lowsuper/examples/quickstart.ini"
  exec "$venv/bin/lowsuper" "$@"
  ;;
test)
  install_packages $build_packages $example_packages $test_packages
  set_up test
  unpack_kernel
  clean_up
  cd "$root"
  if [ $# -eq 0 ]; then
    "$venv/bin/python" -m ruff check . || die 'ruff has something to say'
    "$venv/bin/python" -m mypy --strict lowsuper docs/generate.py || die 'mypy has something to say'
    set -- --numprocesses auto
  fi
  exec "$venv/bin/python" -m pytest "$@"
  ;;
setup)
  install_packages $build_packages $example_packages $test_packages
  set_up test
  unpack_kernel
  ;;
install)
  install_packages $build_packages
  install_lowsuper
  ;;
esac
