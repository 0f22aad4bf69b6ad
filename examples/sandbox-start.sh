#!/usr/bin/env bash
# Starts the tunnels when a sandbox starts, and leaves them running for every shell in it.
#
#   AWS_REGION=us-east-1 AWS_ROLE_ARN=… AWS_WEB_IDENTITY_TOKEN_FILE=… AUTOHEAL_PA_BASTION=i-… \
#     examples/sandbox-start.sh [OPTION OF up]…
#
# When it returns with status 0 the tunnels are ready, and shells get them with
#   . "${AUTOHEAL_PA_ENV:-$HOME/.autoheal-pa.env}"
# or eval "$(autoheal-pa env)". `autoheal-pa status` shows how they are, `autoheal-pa down` closes them.
set -euo pipefail

program="${AUTOHEAL_PA:-autoheal-pa}"
env_file="${AUTOHEAL_PA_ENV:-$HOME/.autoheal-pa.env}"

# A sandbox that is started again may still have them.
if ! "$program" status > /dev/null 2>&1; then
    "$program" up --detach --env-file "$env_file" "$@"
fi
"$program" status
