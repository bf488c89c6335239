#!/bin/sh
# Install sets of requirements.lock (`run`, an extra, one package's name), each file compared with its sha256:
#   deploy/install.sh .venv/bin/python run s3
# TRUST='torch …' takes these packages in the locked version as the index has them, with what they need beyond the lock;
# TRUST=all takes every package so, and nothing beyond.
set -eu
lock=$(dirname "$0")/../requirements.lock
python=$1
shift
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
trap 'exit 130' INT TERM

install() {
  for set; do
    grep -Eq "^$set==| # (.* )?$set( |$)" "$lock" || {
      echo "error: There is no extra or package '$set' in $lock." >&2
      exit 1
    }
  done
  for name in ${TRUST:-}; do
    test "$name" = all || grep -q "^$name==" "$lock" || {
      echo "error: TRUST names '$name', and $lock has no such package; TRUST=all takes every package as the index has it." >&2
      exit 1
    }
  done
  sets=$(printf '%s|' "$@")
  sets=${sets%|}
  trusted=$(echo ${TRUST:-none} | sed 's/^all$/.*/; s/ /|/g')
  grep -E "^($sets)==| # (.* )?($sets)( |$)" "$lock" > "$temporary/all"
  grep -Ev "^($trusted)==" "$temporary/all" > "$temporary/locked" || true
  grep -E "^($trusted)==" "$temporary/all" | sed 's/ --hash=[^ ]*//g' > "$temporary/trusted" || true
  # pip would take a file with a listed digest before a build for CPUs in a folder (PIP_FIND_LINKS); so that comes first.
  grep '^torch==' "$temporary/locked" > "$temporary/torch" || true
  pip --no-index --only-binary :all: --require-hashes --requirement "$temporary/torch"
  pip --only-binary :all: --require-hashes --requirement "$temporary/locked"
  pip --requirement "$temporary/trusted"
  # PyTorch for another CUDA needs other libraries; of what is in place nothing is installed again.
  test "$trusted" = '.*' || (unset PIP_FORCE_REINSTALL && pip --with-deps --requirement "$temporary/trusted")
}

pip() {
  for last; do :; done
  test -s "$last" || return 0
  if test "$1" = --with-deps; then shift; else set -- --no-deps "$@"; fi
  "$python" -m pip install --quiet "$@" 2> "$temporary/said" || {
    ! { test "$2" = --no-index && grep -q 'No matching distribution' "$temporary/said"; } || return 0
    cat "$temporary/said" >&2
    ! grep -q 'DO NOT MATCH THE HASHES' "$temporary/said" || echo "error: The package index has another file of the" \
      "package named above than requirements.lock (Linux on x86_64 or aarch64, macOS on arm64; Python 3.11 to 3.14), so" \
      "nothing was installed. If it is to be another, as a PyTorch built for your machine is, run this again with" \
      "TRUST=torch (or TRUST=all); if not, somebody may have changed it: use another index." >&2
    ! grep -Eq 'NewConnectionError|ConnectTimeout|Name or service not known|Temporary failure' "$temporary/said" ||
      echo "error: The package index cannot be reached, so nothing was installed. Set a mirror with" \
        "PIP_INDEX_URL=https://… (or 'pip config set global.index-url'), or try again with a connection." >&2
    exit 1
  }
}

install "$@"
# PyPI's PyTorch for CUDA needs the locked libraries of NVIDIA; a build of another index (2.13.0+cu126) has its own.
if "$python" -c 'import importlib.metadata as m, sys
sys.exit(sys.platform != "linux" or "+" in m.version("torch") or "nvidia" not in " ".join(m.requires("torch")))' 2> /dev/null; then
  install cuda
fi
