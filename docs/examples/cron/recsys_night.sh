#!/bin/sh
# One night under cron: yesterday's log, tried again where waiting helps. The output folder is locked by recsys itself, so that
# two calls that overlap do no harm: the second ends with 75. Missed nights are caught up by the next one.
#
#   RECSYS_CONFIG   the recipe (required)          RECSYS   the command; default: recsys
#   RETRIES, WAIT   how often, and how many seconds apart; default: 5 times, 600 seconds
set -u
: "${RECSYS_CONFIG:?set RECSYS_CONFIG to the recipe}"
day=${1:-$(date -u -d yesterday +%F)}
left=${RETRIES:-5}

while :; do
    "${RECSYS:-recsys}" run --config "$RECSYS_CONFIG" --as-of "$day" --progress off --log-format json
    code=$?
    case $code in
        0) exit 0 ;;              # done, or done before
        2 | 3 | 5) exit $code ;;  # the recipe, the data, the gate: a person has to look, cron sends the last lines
        130 | 143) exit $code ;;  # somebody stopped it; the next call goes on where it was
    esac                          # 75 another run is at work, 4 MLflow is away, anything else: later may be better
    [ "$left" -gt 0 ] || exit $code
    left=$((left - 1))
    sleep "${WAIT:-600}"
done
