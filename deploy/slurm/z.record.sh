#!/usr/bin/env bash
# z.record.sh start|stop|dump: counts which experts the decode servers hit; dumps lie in $RUN_DIR/experts.
cd "$(dirname "$0")" && source ./lib.sh
load_nodes
case ${1:-} in
  start) client experts record --router "$ROUTER_URL" --role decode ;;
  stop | dump) client experts "$1" --router "$ROUTER_URL" --role decode ;;
  *) die "start, stop or dump?" ;;
esac
