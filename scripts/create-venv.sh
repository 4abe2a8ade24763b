#!/bin/sh
# Makes the virtual environment DIRECTORY, unless a working one is there, with the first Python that is new enough.
set -eu
directory=$1

if "$directory/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

python=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if new_enough "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "optserve needs Python 3.11 or newer, and found none. Install it (Debian: apt-get install python3-venv)," >&2
    echo "or say where it is: make PYTHON=/path/to/python3" >&2
    exit 1
fi

# Debian keeps what `venv` needs in a package of its own.
if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    package=$("$python" -c 'import sys; print("python{}.{}-venv".format(*sys.version_info))')
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "$python cannot make virtual environments. Install what it lacks (Debian: apt-get install $package)." >&2
        exit 1
    fi
    echo "Installing $package, which $python needs to make a virtual environment."
    apt-get update -qq >&2
    apt-get install -y -qq "$package" >&2
fi

"$python" -m venv --clear "$directory"
