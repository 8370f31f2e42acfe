#!/usr/bin/env bash
# 7.slow_down.sh start|stop: decode sleeps before each step, so that it fills up; or does so no more.
cd "$(dirname "$0")" && source ./lib.sh
load_nodes
case ${1:-} in
  start) client slow_down --router "$ROUTER_URL" --sleep "$SLOW_DOWN_S" ;;
  stop) client slow_down --router "$ROUTER_URL" --sleep null ;;
  *) die "start or stop?" ;;
esac
