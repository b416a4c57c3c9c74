#!/bin/sh
# Prints the directory that holds prometheus and promtool: from PATH, or Debian's package unpacked and
# kept (KIAM_TOOLS, default the user's cache). Nothing is installed and no service is started.
set -eu
tools=${KIAM_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/kiam-deploy-check}
kept=$tools/prometheus

there() { [ -x "$1/prometheus" ] && [ -x "$1/promtool" ]; }

if found=$(command -v prometheus) && there "$(dirname "$found")"; then
  dirname "$found"
  exit
fi
if ! there "$kept/usr/bin"; then
  command -v apt-get >/dev/null && command -v dpkg >/dev/null || { echo "no prometheus, and no apt to fetch it with" >&2; exit 1; }
  mkdir -p "$kept"
  cd "$kept"
  if ! apt-get download -qq prometheus >/dev/null 2>&1; then
    # Lists may be missing or old; only root may renew them.
    [ "$(id -u)" = 0 ] && apt-get update -qq >/dev/null 2>&1 && apt-get download -qq prometheus >/dev/null 2>&1 ||
      { echo "prometheus cannot be fetched with apt" >&2; exit 1; }
  fi
  dpkg -x prometheus_*.deb .
  rm -f prometheus_*.deb
fi
there "$kept/usr/bin" && "$kept/usr/bin/promtool" --version >/dev/null 2>&1 && echo "$kept/usr/bin"
