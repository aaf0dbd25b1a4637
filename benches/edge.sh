#!/usr/bin/env bash
# What a client costs at the edge: benches/edge.sh [ROUNDS [CONNECTIONS]].  Wants the release builds
# of mailrace and mailrace-loadtest (`cargo build --release --workspace --bins`), what `.ci/setup`
# unpacks, root, and a loopback interface of which it uses 127.20.0.0/15 and 127.53.0.1:53.
#
# The same clients against mailrace and against Postfix's postscreen, in alternating rounds, with
# the same DNS list (rbldnsd behind unbound), the same greeting wait, and the sender's domain and
# the client's name looked up by both:
#   refused  a connection from a listed address that is refused at RCPT and says QUIT
#   clean    a connection from an address never seen that is not listed, with one message of 10 KiB,
#            which is held: in Postfix postscreen hands over to smtpd, which hands over to cleanup
# Counted is the CPU time (user and system) of all of the server's processes, ended ones too.
# Postfix has no log here (no syslog listens), mailrace writes its events into a file.
#
# The more come in a second, the more of them each look of a server at its sockets finds, and the
# less each of them costs either server.  So the refused come as in the attack of benches/attack.sh,
# and the clean as fast as Postfix can take them here (at 200 a second it says that it is busy);
# REFUSED_RATE and CLEAN_RATE change that, and OUR_CLEAN_RATE what mailrace alone gets: with 2500
# each server has about as much to do as it can do.
. "$(dirname "$0")/edge-kit.sh"
rounds=${1:-5}
connections=${2:-2048}
refused_rate=${REFUSED_RATE:-833} clean_rate=${CLEAN_RATE:-150}
declare -A rates=([refused.mailrace]=$refused_rate [refused.postfix]=$refused_rate
  [clean.mailrace]=${OUR_CLEAN_RATE:-$clean_rate} [clean.postfix]=$clean_rate)
[ "$connections" -le 2048 ] && [ "$rounds" -le 16 ] || { echo "too many for the addresses"; exit 2; }
median() { sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }
start_names 127.20.0.0/16

# --- mailrace --------------------------------------------------------------------------------
ours=$(port)
cat >"$home/mailrace.toml" <<EOF
hostname = "mx.target.test"
data_dir = "$home/data"
[[listener]]
address = "127.0.0.1:$ours"
service = "mx"
[relay]
networks = []
[domains]
accept = ["target.test"]
[[route]]
recipient = "*"
to = "hold"
[dns]
servers = ["$resolver:53"]
[edge]
greeting_wait = "2s"
tarpit = "0s"
thresholds = { tag = 3, reject = 5 }
[[edge.list]]
zone = "block.test"
weight = 5
[admin]
address = "127.0.0.1:$(port)"
EOF
"$bin/mailrace" --config "$home/mailrace.toml" >"$logs/events" 2>"$home/said" &
mailrace=$!
started+=("$mailrace")

# --- Postfix: unpacked, with mounts of its own, so that nothing of the machine is changed ------
theirs=$(port)
mkdir -p "$home"/etc/postfix "$home"/var/{spool/postfix,lib/postfix,log,tmp}
cat >"$home/etc/postfix/main.cf" <<EOF
compatibility_level = 3.6
myhostname = mx.target.test
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.1/32
relay_domains = target.test
relay_recipient_maps =
smtpd_relay_restrictions = reject_unauth_destination
smtpd_sender_restrictions = reject_unknown_sender_domain
smtpd_client_restrictions = static:HOLD
in_flow_delay = 0
alias_maps =
biff = no
default_process_limit = 200
postscreen_pre_queue_limit = 5000
postscreen_post_queue_limit = 5000
postscreen_greet_wait = 2s
postscreen_greet_action = enforce
postscreen_dnsbl_sites = block.test=127.0.0.[2..254]*5
postscreen_dnsbl_threshold = 5
postscreen_dnsbl_action = enforce
EOF
cat >"$home/etc/postfix/master.cf" <<EOF
127.0.0.1:$theirs inet n - n - 1 postscreen
smtpd    pass  - - n - - smtpd
dnsblog  unix  - - n - 0 dnsblog
tlsproxy unix  - - n - 0 tlsproxy
cleanup  unix  n - n - 0 cleanup
pickup   unix  n - n 60 1 pickup
qmgr     unix  n - n 300 1 qmgr
rewrite  unix  - - n - - trivial-rewrite
bounce   unix  - - n - 0 bounce
defer    unix  - - n - 0 bounce
trace    unix  - - n - 0 bounce
verify   unix  - - n - 1 verify
proxymap unix  - - n - - proxymap
smtp     unix  - - n - - smtp
error    unix  - - n - - error
retry    unix  - - n - - error
anvil    unix  - - n - 1 anvil
scache   unix  - - n - 1 scache
EOF
for file in passwd group; do
  grep -v '^post' "/etc/$file" >"$home/etc/$file"
done
echo 'postfix:x:61201:61201::/nonexistent:/usr/sbin/nologin' >>"$home/etc/passwd"
printf 'postfix:x:61201:\npostdrop:x:61202:\n' >>"$home/etc/group"
echo '127.0.0.1 localhost' >"$home/etc/hosts"
printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$home/etc/nsswitch.conf"
echo "nameserver $resolver" >"$home/etc/resolv.conf"
chown 61201:61201 "$home/var/lib/postfix"
# shellcheck disable=SC2016
unshare --mount --pid --fork --kill-child sh -ec '
mount -t overlay overlay -o "lowerdir=$1/etc:$2/etc:/etc" /etc
mount -t overlay overlay -o "lowerdir=$2/usr:/usr" /usr
mount -t tmpfs tmpfs /run
mount --bind "$1/var" /var
postfix check
exec /usr/lib/postfix/sbin/master -d' postfix "$home" "$peers/postfix/root" \
  </dev/null >"$home/postfix.said" 2>&1 &
postfix=$!
# unshare takes no TERM; killed, it takes all of Postfix along.
stubborn+=("$postfix")
greets "$ours"
greets "$theirs"

# --- rounds ------------------------------------------------------------------------------------
slice=0
# run PID PORT NETWORK-OCTET WHAT OPTION...: appends the microseconds of CPU a connection to the
# file of WHAT.  Each run has 2048 addresses of its own, so that nobody has been seen before.
run() {
  local before after pid=$1 to=$2 net=$3 what=$4 code=0
  before=$(cpu_ticks "$pid")
  "$bin/mailrace-loadtest" send --to "127.0.0.1:$to" --quiet --json --one --messages "$connections" \
    --rate "${rates[$what]}" --sessions 5000 --source "127.$net.$((slice * 8)).0/21" --helo mail.firm.test \
    --from 'person{n}@firm.test' --rcpt 'user{n}@target.test' --timeout 30s "${@:5}" \
    >"$home/sent.json" || code=$?
  # What Postfix does behind its reply is done by then.
  sleep 1
  after=$(cpu_ticks "$pid")
  python3 - "$home/sent.json" "$what" "$connections" <<'CHECK' || {
import json, sys
sent = json.load(open(sys.argv[1]))
is_refused = sys.argv[2].startswith("refused")
refused = sum(r["count"] for r in sent["refusals"] if r["at"] == "rcpt" and 500 <= r["code"] < 600)
done = refused if is_refused else sent["acknowledged"]
# On a busy machine an answer of the list may come too late for one of them.
if done < int(sys.argv[3]) * 0.99:
    sys.exit(f"{sys.argv[2]}: only {done} of {sys.argv[3]}: {sent['refusals']} {sent['texts'][:5]}")
CHECK
    tail -n 5 "$home/said" "$home/postfix.said" >&2
    exit 1
  }
  awk "BEGIN { print ($after - $before) * 1e6 / $(getconf CLK_TCK) / $connections }" >>"$home/$what"
}
for _ in $(seq "$rounds"); do
  run "$mailrace" "$ours" 20 refused.mailrace
  run "$mailrace" "$ours" 21 clean.mailrace
  slice=$((slice + 1))
  run "$postfix" "$theirs" 20 refused.postfix
  run "$postfix" "$theirs" 21 clean.postfix
  slice=$((slice + 1))
done
for what in refused clean; do
  ours_us=$(median <"$home/$what.mailrace") theirs_us=$(median <"$home/$what.postfix")
  echo "$what: mailrace $ours_us us at ${rates[$what.mailrace]} a second, postscreen and what follows" \
    "it $theirs_us us at ${rates[$what.postfix]} a connection," \
    "ratio $(awk "BEGIN { printf \"%.2f\", $ours_us / $theirs_us }")" \
    "(mailrace $(sort -n "$home/$what.mailrace" | tr '\n' ' ')/ Postfix $(sort -n "$home/$what.postfix" | tr '\n' ' '))"
done
