#!/usr/bin/env bash
# Starts the tunnels when a sandbox starts, and leaves them running for every shell in it.
#
#   AWS_REGION=us-east-1 AWS_ROLE_ARN=… AWS_WEB_IDENTITY_TOKEN_FILE=… AUTOHEAL_PA_BASTION=i-… \
#     examples/sandbox-start.sh [OPTION OF up]…
#
# When it returns with status 0 the tunnels are ready, and shells get them with
#   . "${AUTOHEAL_PA_DIR:-$HOME/.autoheal-pa}/env"
set -euo pipefail

dir="${AUTOHEAL_PA_DIR:-$HOME/.autoheal-pa}"
program="${AUTOHEAL_PA:-autoheal-pa}"
mkdir -p "$dir"
rm -f "$dir/ready"
mkfifo "$dir/ready"

nohup "$program" up --env-file "$dir/env" "$@" > "$dir/ready" 2> "$dir/log" &
echo $! > "$dir/pid"

# `up` prints one line, `tunnel ready`. If it ends instead, its log says why.
if ! read -r line < "$dir/ready"; then
    cat "$dir/log" >&2
    wait "$!" || exit "$?"
    exit 1
fi
echo "$line"
