#!/bin/sh
# Says what is missing on this machine before an installation fails on it: fastecdsa, a dependency of libp2p, is compiled from source.
# Uses the interpreter in $PYTHON (python3 where unset); exits with 1 and the command that helps.
set -eu

python=${PYTHON:-}
[ -n "$python" ] || python=python3
missing=

fail() {
    echo "swarmd: $1" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 || fail "Python 3.11 or later is missing; on Debian and Ubuntu run: apt install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old; swarmd needs Python 3.11 or later (name another: make PYTHON=/path/to/python3.11 ...)"
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"

compiler=
for candidate in "${CC:-}" cc gcc clang; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1; then
        compiler=$candidate
        break
    fi
done

if [ -z "$compiler" ]; then
    missing="$missing build-essential"
    # Without a compiler the headers are looked for where the interpreter and Debian put them.
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    [ -e "$headers/Python.h" ] || missing="$missing python3-dev"
    [ -n "$(find /usr/include /usr/local/include -name gmp.h 2>/dev/null | head -n 1)" ] || missing="$missing libgmp-dev"
else
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    compiles() { printf '#include <%s>\nint main(void) { return 0; }\n' "$1" | "$compiler" -I"$include" -x c -fsyntax-only - >/dev/null 2>&1; }
    if ! compiles stdio.h; then
        missing="$missing build-essential"
    else
        compiles Python.h || missing="$missing python3-dev"
        compiles gmp.h || missing="$missing libgmp-dev"
    fi
fi

[ -z "$missing" ] || fail "this machine lacks what libp2p's dependency fastecdsa is compiled with; on Debian and Ubuntu run: apt install$missing"
