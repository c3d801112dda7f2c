#!/bin/sh
# Brings what the interop tests compare with into target/interop: a Python environment with kafka-python and its codecs,
# and Kafka's own dump tool with all it needs. Run again, it does nothing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=${1:-$here/../../target/interop}
mkdir -p "$target"
need() {
    command -v "$1" >/dev/null 2>&1 && return 0
    [ "$(id -u)" = 0 ] || { echo "install.sh: $1 is missing; install $2" >&2; exit 1; }
    [ -n "${updated:-}" ] || { apt-get update -q; updated=1; }
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$2"
}
need python3 python3
need java default-jdk-headless
need mvn maven
if [ ! -e "$target/venv/ready" ]; then
    # Debian keeps the module that makes environments in a package of its own.
    python3 -c 'import ensurepip' 2>/dev/null || { [ "$(id -u)" = 0 ] && apt-get install -q -y python3-venv; }
    python3 -m venv "$target/venv"
    "$target/venv/bin/pip" install -q kafka-python crc32c lz4 python-snappy cramjam zstandard
    touch "$target/venv/ready"
fi
if [ ! -e "$target/kafka-libs/ready" ]; then
    mvn -q -f "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
        -DoutputDirectory="$target/kafka-libs"
    touch "$target/kafka-libs/ready"
fi
