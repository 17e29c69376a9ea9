#!/usr/bin/env bash
# Generates the stubs of gateway/api/ from the .proto files here; with --check, fails where the committed ones are stale.
set -euo pipefail
cd "$(dirname "$0")/.."
fresh="$(mktemp -d)"
trap 'rm -rf "$fresh"' EXIT
find proto -name '*.proto' -print0 | sort -z | xargs -0 "${PYTHON:-.venv/bin/python}" -m grpc_tools.protoc \
  -Iproto --python_out="$fresh" --pyi_out="$fresh" --grpc_python_out="$fresh"
if [[ "${1:-}" != "--check" ]]; then
  cp -r "$fresh/gateway/api/." gateway/api/
elif ! diff -r --exclude=__init__.py --exclude=__pycache__ "$fresh/gateway/api" gateway/api; then
  echo "the stubs in gateway/api are stale: run proto/generate.sh" >&2
  exit 1
fi
