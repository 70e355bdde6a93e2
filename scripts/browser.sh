#!/bin/sh
# Installs the browser for the tests in tests/browser: Debian's and Ubuntu's package, where this may be done. Elsewhere
# it says so and ends well: those tests are then skipped, with the reason.
set -eu
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "No Chromium, and none can be installed here: tests in a browser will be skipped" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null ||
    echo "Chromium could not be installed: tests in a browser will be skipped" >&2
