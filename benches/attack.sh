#!/usr/bin/env bash
# The edge filter under attack: benches/attack.sh [SECONDS [RATE [ROUNDS]]].  Wants the release
# builds of mailrace and mailrace-loadtest, what `.ci/setup` unpacks, root (for port 53 of
# 127.53.0.1), 20,000 open files (`ulimit -Hn`), and nothing else on the machine: it judges times.
#
# RATE (833) connections a second from as many listed addresses for SECONDS (60), so 50,000 in a
# minute, beside a dictionary of names, 1,000 clients of an octet a second, and a sender whose mail
# is wanted, 40 messages a second on a connection each.  Told, and held to these bounds:
#   - every listed client is refused, every message of the wanted sender is taken;
#   - its p99 from connect to final reply, against the same sender without the attack before and
#     after it: under three times that.  What a disk and a virtual machine do to a p99 is more than
#     what an attack does, so several ROUNDS (1; at most 8) tell more than one: their median counts;
#   - memory of the gateway, and its CPU time;
#   - the questions that reached the list: one for each address, none twice.
# The generator shares the machine's cores with what it measures.  So the same sender is measured
# beside the same attack at a server that is not attacked too (`mailrace-loadtest sink`): what it
# waits longer there, it waits for a core.
. "$(dirname "$0")/edge-kit.sh"
seconds=${1:-60}
rate=${2:-833}
rounds=${3:-1}
alone_seconds=$((seconds < 25 ? seconds : 25))
[ "$rounds" -ge 1 ] && [ "$rounds" -le 8 ] || { echo "1 to 8 rounds"; exit 2; }
# Listed clients of round N come from 127.(31 + N).0.0/16, at the other server from 127.(39 + N).
start_names 127.32.0.0/12
ulimit -n "$(ulimit -Hn)"
echo user@target.test >"$home/recipients"
mx=$(port)
cat >"$home/mailrace.toml" <<CONF
hostname = "mx.target.test"
data_dir = "$home/data"
[[listener]]
address = "127.0.0.1:$mx"
service = "mx"
[relay]
networks = []
[domains]
accept = ["target.test"]
[[route]]
recipient = "*"
to = "discard"
[dns]
servers = ["$resolver:53"]
[limits]
sessions = 16000
[recipients]
file = "$home/recipients"
[edge]
greeting_wait = "1s"
tarpit = "1s"
thresholds = { tag = 4, reject = 5 }
[edge.checks]
sender_unknown = "off"
[[edge.list]]
zone = "block.test"
weight = 5
[admin]
address = "127.0.0.1:$(port)"
CONF
"$bin/mailrace" --config "$home/mailrace.toml" >"$logs/events" 2>"$home/said" &
mailrace=$!
started+=("$mailrace")
sink=$(port)
"$bin/mailrace-loadtest" sink --listen "127.0.0.1:$sink" >/dev/null 2>&1 &
started+=($!)
greets "$mx"
greets "$sink"

# clean FILE PORT OPTION...: the sender whose mail is wanted; what came of it as JSON.
clean() {
  "$bin/mailrace-loadtest" send --to "127.0.0.1:$2" --quiet --json --one --threads 1 --sessions 40 \
    --size 4KiB-40KiB --source 127.0.13.1-127.0.13.20 --helo mail.firm.test \
    --from 'person{1..200}@firm.test' --rcpt user@target.test "${@:3}" >"$home/$1.json" ||
    true # The report says what went wrong.
}
# attack FILE NETWORK PORT SECONDS: the others, against the gateway, and beside them the sender to PORT.
attack() {
  sed "s|{rate}|$rate|; s|{slow}|1000|; s|{network}|$2|" benches/attack.toml >"$home/$1.toml"
  "$bin/mailrace-loadtest" send --scenario "$home/$1.toml" --time "$4s" --threads 1 --quiet \
    --to "127.0.0.1:$mx" --json >"$home/attack.$1.json" &
  local attackers=$!
  clean "$1" "$3" --rate 40 --time "$4s"
  # The dictionary and the slow are never through.
  wait "$attackers" || true
}
memory() { awk '/^RssAnon:/ { print $2 }' "/proc/$mailrace/status"; }

# Its addresses get a good record first: the wait before the greeting is for strangers.
clean known "$mx" --messages 200 --rate 100
clean alone.0 "$mx" --rate 40 --time "${alone_seconds}s"
start_kib=$(memory)
(peak=0; while sleep 0.05; do now=$(memory); [ "$now" -gt "$peak" ] && echo "$((peak = now))"; done) \
  >"$home/peaks" 2>/dev/null &
watcher=$!
started+=("$watcher")
ticks=0
for round in $(seq "$rounds"); do
  attack "elsewhere.$round" "127.$((39 + round)).0.0/16" "$sink" "$alone_seconds"
  start_ticks=$(cpu_ticks "$mailrace")
  attack "beside.$round" "127.$((31 + round)).0.0/16" "$mx" "$seconds"
  ticks=$((ticks + $(cpu_ticks "$mailrace") - start_ticks))
  clean "alone.$round" "$mx" --rate 40 --time "${alone_seconds}s"
done
kill "$watcher"
python3 - "$home" "$questions" "$seconds" "$rate" "$rounds" "$start_kib" "$ticks" <<'REPORT'
import collections, json, os, statistics, sys
home, questions = sys.argv[1:3]
seconds, rate, rounds, start_kib, ticks = map(int, sys.argv[3:8])
load = lambda name: json.load(open(f"{home}/{name}.json"))
faults = []
def must(holds, what):
    if not holds:
        faults.append(what)
def whole(name):
    sent = load(name)
    total = sent["acknowledged"] + sent["refused_for_now"] + sent["refused_for_good"] \
        + sent["broken"] + sent["unfinished"]
    must(sent["acknowledged"] == total > 0, f"{name}: {sent['acknowledged']} of {total} taken: {sent['texts']}")
    times = next(step for step in sent["latencies_us"] if step["step"] == "whole")
    print(f"clean, {name}: {sent['acknowledged']} of {total} taken; p50 {times['p50']} us,"
          f" p99 {times['p99']} us, p99.9 {times['p999']} us")
    return times["p99"]
before, ratios, elsewhere_ratios, listed = whole("alone.0"), [], [], 0
for n in range(1, rounds + 1):
    elsewhere, beside, after = whole(f"elsewhere.{n}"), whole(f"beside.{n}"), whole(f"alone.{n}")
    alone, before = (before + after) / 2, after
    ratios.append(beside / alone)
    elsewhere_ratios.append(elsewhere / alone)
    for name, party in load(f"attack.beside.{n}")["parties"].items():
        refused = max(party["recipients_refused"], sum(r["count"] for r in party["refusals"]))
        print(f"{name}: {party['acknowledged']} taken, {refused} refused on"
              f" {party['connections']} connections, {party['connect_failures']} failed to connect")
        if name == "listed":
            came = party["connections"]
            listed += came
            must(party["acknowledged"] + party["abandoned"] == 0, "a listed client was let in")
            must(came >= 0.99 * seconds * rate and refused >= 0.99 * came, f"{refused} of {came} refused")
told = lambda all: f"{statistics.median(all):.2f} ({' '.join(f'{one:.2f}' for one in all)})"
print(f"p99 beside the attack by that without: {told(ratios)}"
      f" (of a server that is not attacked: {told(elsewhere_ratios)})")
must(statistics.median(ratios) < 3, "p99 beside the attack")
peak_kib = max([start_kib] + [int(line) for line in open(f"{home}/peaks")])
print(f"memory: {start_kib >> 10} MiB before, {peak_kib >> 10} MiB at most")
must(peak_kib - start_kib < 192 << 10, "memory")
us = ticks * 1e6 / os.sysconf("SC_CLK_TCK")
print(f"CPU of the gateway: {us / seconds / rounds / 1e4:.0f} % of one core, {us / listed:.0f} us for each"
      " listed connection if all of it is theirs")
asked = collections.Counter(line.split()[2].lower() for line in open(questions))
attacking = tuple(f".{31 + n}.127.block.test" for n in range(1, rounds + 1))
listed_asked = {name: n for name, n in asked.items() if name.endswith(attacking)}
twice = [name for name, n in listed_asked.items() if n > 1]
print(f"questions to the list about them: {sum(listed_asked.values())}, about"
      f" {len(listed_asked)} addresses, {len(twice)} more than once")
must(not twice, f"asked twice: {twice[:3]}")
must(len(listed_asked) >= 0.99 * rounds * min(seconds * rate, 65536), "addresses that nobody asked about")
for fault in faults:
    print("OUT OF BOUNDS:", fault)
sys.exit(bool(faults))
REPORT
