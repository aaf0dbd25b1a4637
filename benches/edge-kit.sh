# shellcheck shell=bash
# What benches/edge.sh and benches/attack.sh share: sourced, not run.  Sets $bin (the release
# builds), $peers (what `.ci/setup` unpacks) and $home (a directory that goes with the script);
# whatever is put into `started` is stopped at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=$(realpath "${CARGO_TARGET_DIR:-target}/release")
peers=$(realpath "${MAILRACE_TEST_CACHE:-target/peers}")
home=$(mktemp -d)
# What is only written for the script, the events and the list's questions, goes to memory: what a
# disk does with some 50 MB of them is not asked here.
logs=$(mktemp -d -p "$([ -d /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")")
chmod 755 "$home" "$logs"
started=()
# Processes that take no TERM.
stubborn=()
finish() {
  for pid in "${stubborn[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$home" "$logs"
}
trap finish EXIT

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
greets() {  # greets PORT: waits until something listens there
  for _ in $(seq 300); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return; fi
    sleep 0.1
  done
  echo "nothing listens at $1" >&2
  exit 1
}
# CPU ticks of a process and all below it; those of ended children are in their parents' sums.
cpu_ticks() {
  local sum=0 todo=("$1") pid line
  while [ ${#todo[@]} -gt 0 ]; do
    pid=${todo[0]}
    todo=("${todo[@]:1}")
    line=$(cat "/proc/$pid/stat" 2>/dev/null) || continue
    # shellcheck disable=SC2086
    set -- ${line##*) }
    sum=$((sum + ${12} + ${13} + ${14} + ${15}))
    # shellcheck disable=SC2207
    todo+=($(cat "/proc/$pid/task/"*/children 2>/dev/null || true))
  done
  echo "$sum"
}

resolver=127.53.0.1
# start_names NETWORK: rbldnsd with the list block.test, which has NETWORK and writes the questions
# that it hears to $questions; unbound before it at $resolver:53, which knows firm.test too.
start_names() {
  local list libraries
  list=$(port)
  questions=$logs/dns/questions
  mkdir "$home/dns" "$logs/dns"
  # An answer counts for longer than any run: a question that comes twice is one too many.
  printf '$SOA 3600 ns.block.test x.block.test 1 600 300 86400 3600\n$NS 3600 ns.block.test\n$TTL 3600
127.0.0.2 :127.0.0.2:test\n%s :127.0.0.4:listed\n' "$1" >"$home/dns/block"
  chown -R 65534:65534 "$home/dns" "$logs/dns"
  "$peers/lists/root/usr/sbin/rbldnsd" -n -a -c 0 -l "+$questions" -u 65534:65534 \
    -b "127.0.0.1/$list" -w "$home/dns" block.test:ip4set:block >/dev/null 2>&1 &
  started+=($!)
  cat >"$home/unbound.conf" <<CONF
server:
 interface: $resolver@53
 username: ""
 chroot: ""
 directory: "$home"
 pidfile: ""
 use-syslog: no
 do-daemonize: no
 do-not-query-localhost: no
 do-ip6: no
 module-config: "iterator"
 qname-minimisation: no
 infra-cache-min-rtt: 20000
 unknown-server-time-limit: 20000
 local-zone: "." static
 local-zone: "block.test." transparent
 local-zone: "firm.test." static
 local-data: "firm.test. MX 10 mail.firm.test."
 local-data: "mail.firm.test. A 127.0.0.1"
remote-control:
 control-enable: no
stub-zone:
 name: block.test
 stub-addr: 127.0.0.1@$list
CONF
  libraries=$(printf '%s:' "$peers"/dns/root/usr/lib/*)
  LD_LIBRARY_PATH=$libraries "$peers/dns/root/usr/sbin/unbound" -d -c "$home/unbound.conf" \
    >/dev/null 2>&1 &
  started+=($!)
}
