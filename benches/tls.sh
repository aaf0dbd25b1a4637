#!/usr/bin/env bash
# What TLS costs: benches/tls.sh [ROUNDS].  Wants the release builds of mailrace and
# mailrace-loadtest (`cargo build --release --workspace --bins`), and openssl.
#
# Handshakes: full ones, TLS 1.3 and 1.2, ECDSA P-256, X25519, AES-128-GCM, one session ticket,
# from `openssl s_time`, against mailrace with one worker and against `openssl s_server` with the
# same key.  Messages: 10 KiB, pipelined, 20 sessions, in clear and encrypted, to the same process.
# Counted is the server's CPU time (user and system, all of the process), in alternating rounds; the
# sender needs more than the server does, so the rates that it reaches say nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5}
bin=${CARGO_TARGET_DIR:-target}/release
home=$(mktemp -d)
servers=()
finish() {
  if [ ${#servers[@]} -gt 0 ]; then kill "${servers[@]}" 2>/dev/null || true; fi
  wait
  rm -rf "$home"
}
trap finish EXIT

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
cpu_ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }
median() { sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }

"$bin/mailrace" cert self-signed --name mx.test --out "$home" >/dev/null
chain=$home/mx.test.pem
key=$home/mx.test.key
implicit=$(port) clear=$(port) other=$(port)
cat >"$home/mailrace.toml" <<EOF
hostname = "mx.test"
data_dir = "$home/data"
workers = 1
[[listener]]
address = "127.0.0.1:$implicit"
service = "relay"
tls = "implicit"
[[listener]]
address = "127.0.0.1:$clear"
service = "relay"
[[tls.certificate]]
chain = "$chain"
key = "$key"
[[route]]
recipient = "*"
to = "discard"
[admin]
address = "127.0.0.1:$(port)"
EOF
"$bin/mailrace" --config "$home/mailrace.toml" >/dev/null 2>"$home/said" &
mailrace=$!
servers+=("$mailrace")
openssl s_server -accept "127.0.0.1:$other" -cert "$chain" -key "$key" -num_tickets 1 -quiet \
  </dev/null >/dev/null 2>&1 &
openssl=$!
servers+=("$openssl")
for _ in $(seq 300); do
  if grep -q '^ready: ' "$home/said"; then break; fi
  sleep 0.1
done

handshakes() {  # handshakes PID PORT OPTION...: handshakes a second of the server's CPU
  local before count
  before=$(cpu_ticks "$1")
  count=$(openssl s_time -connect "127.0.0.1:$2" -new -time 3 "${@:3}" 2>/dev/null |
    awk '/real seconds/ { print $1; exit }')
  awk "BEGIN { print int($count * $(getconf CLK_TCK) / ($(cpu_ticks "$1") - $before)) }"
}
for version in "-ciphersuites TLS_AES_128_GCM_SHA256" "-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256"; do
  : >"$home/ours"
  : >"$home/theirs"
  for _ in $(seq "$rounds"); do
    # shellcheck disable=SC2086
    handshakes "$mailrace" "$implicit" $version >>"$home/ours"
    # shellcheck disable=SC2086
    handshakes "$openssl" "$other" $version >>"$home/theirs"
  done
  ours=$(median <"$home/ours") theirs=$(median <"$home/theirs")
  echo "handshakes a CPU second ($version): mailrace $ours, openssl s_server $theirs," \
    "ratio $(awk "BEGIN { printf \"%.2f\", $ours / $theirs }")"
done

message_us() {  # message_us PORT OPTION...: the server's CPU a message, in microseconds
  local before messages=20000
  before=$(cpu_ticks "$mailrace")
  "$bin/mailrace-loadtest" send --to "127.0.0.1:$1" --sessions 20 --messages "$messages" \
    --pipeline --quiet "${@:2}" >/dev/null
  awk "BEGIN { print ($(cpu_ticks "$mailrace") - $before) * 1e6 / $(getconf CLK_TCK) / $messages }"
}
: >"$home/clear"
: >"$home/tls"
for _ in $(seq "$rounds"); do
  message_us "$clear" >>"$home/clear"
  message_us "$implicit" --tls implicit --insecure >>"$home/tls"
done
in_clear=$(median <"$home/clear") encrypted=$(median <"$home/tls")
echo "server's CPU a message of 10 KiB: $in_clear us in clear, $encrypted us encrypted," \
  "ratio $(awk "BEGIN { printf \"%.2f\", $encrypted / $in_clear }")"
