#!/usr/bin/env bash
# Bring Chromium for the tests of the pages, where that may be done unasked: as root, from Debian's packages.
# Elsewhere say so and go on: those tests then skip with a sentence, and fail where CI is set.
set -euo pipefail

for program in "${SEQPROC_TEST_CHROMIUM:-}" chromium-headless-shell chromium google-chrome; do
    if command -v "$program" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "No Chromium: its tests skip. Install chromium, or set SEQPROC_TEST_CHROMIUM to the program." >&2
    exit 0
fi
echo "Installing chromium-headless-shell for the tests of the pages" >&2
export DEBIAN_FRONTEND=noninteractive
packages=(chromium-headless-shell fonts-dejavu-core)
if ! { apt-get -qq update && apt-get -qq install -y --no-install-recommends "${packages[@]}"; } </dev/null >/dev/null; then
    echo "apt-get could not bring Chromium: its tests skip. Set SEQPROC_TEST_CHROMIUM to a program." >&2
fi
