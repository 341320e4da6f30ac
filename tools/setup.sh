#!/bin/sh
# Makes the virtual environment $VENV with Elman, its tasks and its development tools, at the versions of constraints.txt.
# A torch that $PYTHON already has is used as it is, whatever its version; pip's own settings hold throughout.
set -eu
if [ ! -x "$VENV/bin/python" ]; then
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        { echo "Elman needs Python 3.10 or newer; set PYTHON=... to one (found: $("$PYTHON" --version 2>&1))" >&2; exit 1; }
    if "$PYTHON" -c 'import torch' 2>/dev/null; then site=--system-site-packages; else site=; fi
    "$PYTHON" -m venv $site "$VENV"
fi
if "$VENV/bin/python" -c 'import torch' 2>/dev/null; then
    grep -v '^torch==' constraints.txt >"$VENV/constraints.txt"
else
    cp constraints.txt "$VENV/constraints.txt"
    "$VENV/bin/python" -m pip install --quiet --constraint "$VENV/constraints.txt" torch
fi
"$VENV/bin/python" -m pip install --quiet --constraint "$VENV/constraints.txt" --editable '.[dev]'
