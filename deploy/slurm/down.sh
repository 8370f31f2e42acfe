#!/usr/bin/env bash
# Asks the router, then the servers of this job to drain and end, and waits until they have.
cd "$(dirname "$0")" && source ./lib.sh
for name in router decode prefill; do
  # A step that has just ended by itself cannot be signalled any more.
  while read -r step _; do scancel --quiet --signal=TERM "$step" 2>/dev/null || true; done < <(steps | grep -E " $name(_[0-9]+)?\$" || true)
done
deadline=$((SECONDS + 60))
while steps | grep -qE ' (router|decode|prefill_[0-9]+)$'; do
  ((SECONDS < deadline)) || die "some steps do not end: $(steps | tr '\n' ';')"
  sleep 0.2
done
