#!/bin/sh
# Installs autoheal-pa from the archive of a release: the one beside this script, or the one at URL. Both variables are options of
# the feature. DESTDIR is for trying it out.
set -eu

cd "$(dirname "$0")"
url=${URL:-}
expected=${SHA256:-}
root=${DESTDIR:-}

fail() {
    echo "error: $1" >&2
    exit 1
}

case $(uname -s)-$(uname -m) in
    Linux-x86_64) target=x86_64-unknown-linux-musl ;;
    Linux-aarch64) target=aarch64-unknown-linux-musl ;;
    *) fail "no release of autoheal-pa is built for $(uname -s) on $(uname -m)" ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -n "$url" ]; then
    [ -n "$expected" ] || fail "the option sha256 is missing: what comes from $url is not taken without it"
    archive=$work/archive.tar.gz
    if command -v curl >/dev/null; then
        curl --fail --silent --show-error --location --retry 3 --output "$archive" "$url" || fail "$url cannot be downloaded"
    elif command -v wget >/dev/null; then
        wget -q -O "$archive" "$url" || fail "$url cannot be downloaded"
    else
        fail "neither curl nor wget is there to download $url: put the archive beside install.sh instead"
    fi
else
    archive=
    for found in autoheal-pa-*-"$target".tar.gz; do
        [ -e "$found" ] || fail "there is no autoheal-pa-VERSION-$target.tar.gz beside install.sh, and the option url is not given"
        [ -z "$archive" ] || fail "there are several archives beside install.sh: $archive and $found"
        archive=$found
    done
fi

if [ -n "$expected" ]; then
    actual=$(sha256sum "$archive" | cut -d ' ' -f 1)
    [ "$actual" = "$expected" ] || fail "the checksum of the archive is $actual, and $expected was expected: nothing was installed"
fi

tar -xzf "$archive" -C "$work"
program=
for found in "$work"/autoheal-pa-*-"$target"/autoheal-pa; do
    [ -f "$found" ] || fail "the archive has no autoheal-pa for $target"
    program=$found
done
"$program" --version || fail "the program of the archive does not run here"

# Old versions of `install` make no folders.
mkdir -p "$root/usr/local/bin" "$root/usr/share/bash-completion/completions" "$root/usr/local/share/zsh/site-functions"
cp "$program" "$root/usr/local/bin/autoheal-pa"
chmod 755 "$root/usr/local/bin/autoheal-pa"
"$program" completions bash >"$root/usr/share/bash-completion/completions/autoheal-pa"
"$program" completions zsh >"$root/usr/local/share/zsh/site-functions/_autoheal-pa"
