# Sourced by the other scripts: sets $python to that of the active virtual environment, or of .venv, made if need be.
if [ -n "${VIRTUAL_ENV:-}" ] || { [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; }; then
  python=$(command -v python)
else
  base=$(command -v python3 || command -v python) || { echo "Python 3.10 or newer is needed." >&2; exit 1; }
  "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "Python 3.10 or newer is needed; $base is $("$base" --version)." >&2
    exit 1
  }
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    echo "Making a virtual environment in .venv"
    "$base" -m venv .venv
  fi
  python=$PWD/.venv/bin/python
fi

# Threads of OpenMP that wait for each other spin for long, which beside another busy process takes its place away.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}

# install SPEC: install the package, saying so, since the first time takes minutes.
install() {
  echo "Installing lightning-meta ($1) with $python; the first time this takes a few minutes"
  "$python" -m pip install --quiet --disable-pip-version-check -e "$1"
}
