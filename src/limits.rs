//! Every bound of the gateway in one place: sizes and times that a peer can run into.
//!
//! The defaults of what an operator can set stand in [`crate::config`]; what stands here is fixed.

use std::ops::RangeInclusive;
use std::time::Duration;

/// A command line with its CRLF.  RFC 5321 4.5.3.1.4 asks for 512 and extensions add to it
/// (RFC 1870, 3461, 6152, 6531); one figure that covers them all.
pub const COMMAND_LINE: usize = 2_048;
/// A line of AUTH, or of the client's part in its exchange, with its CRLF (RFC 4954 section 4).
pub const AUTH_LINE: usize = 12_288;
/// Failed AUTH commands before a session is ended with 421.
pub const AUTH_FAILURES: u32 = 3;
/// When a failed login is answered, counted from its last response: the same for every reason, so
/// that the time tells nothing, and slow for who guesses.
pub const AUTH_FAILURE_WAIT: Duration = Duration::from_secs(1);
/// What a verification may take, the wait for a thread included.
pub const AUTH_PATIENCE: Duration = Duration::from_secs(10);
/// Verifications that may wait or run at a time; each that runs takes some 19 MiB.
pub const AUTH_VERIFICATIONS: usize = 64;
/// Entries of each table of what peers have done (failures, logins, rates, unknown recipients); some
/// 100 octets each.
pub const PEERS_REMEMBERED: usize = 65_536;
/// A reply line that we send, with its CRLF (RFC 5321 4.5.3.1.5).
pub const REPLY_LINE: usize = 512;
/// A reply line that we read; more than the 512 that peers should keep to.
pub const PEER_REPLY_LINE: usize = 4_096;
/// Lines of one reply that we read.
pub const PEER_REPLY_LINES: usize = 256;
/// A local part (RFC 5321 4.5.3.1.1).
pub const LOCAL_PART: usize = 64;
/// A domain (RFC 5321 4.5.3.1.2).
pub const DOMAIN: usize = 255;
/// A path with its angle brackets (RFC 5321 4.5.3.1.3).
pub const PATH: usize = 256;
/// A label of a domain (RFC 1035 2.3.4).
pub const LABEL: usize = 63;
/// ENVID as xtext (RFC 3461 4.4).
pub const ENVID: usize = 100;
/// ORCPT as xtext (RFC 3461 4.2 with 5.2.2: 500 is the command's growth).
pub const ORCPT: usize = 500;
/// The most recipients that a configuration may allow; an index fits 16 bits.
pub const RECIPIENTS_MAX: usize = 32_768;
/// The most that one alias or list may stand for; a transaction has room for the next one after it.
pub const EXPANDED_RECIPIENTS: usize = 10_000;
/// The most members of a list that EXPN tells.
pub const EXPN_MEMBERS: usize = 100;
/// The fewest that RFC 5321 4.5.3.1.8 lets a server allow.
pub const RECIPIENTS_MIN: usize = 100;

/// Commands that are wrong, unknown or out of place before a session is ended with 421.
pub const SESSION_ERRORS: u32 = 20;
/// Transactions that the edge filter asks about in a session without a message accepted: each costs
/// look-ups.
pub const EDGE_TRANSACTIONS: u32 = 100;
/// Commands that do nothing for a message (NOOP, RSET, HELP, VRFY, EHLO) in a row.
pub const IDLE_COMMANDS: u32 = 10_000;

/// ETRN requests of one worker's sessions that may wait for the next look through the queue; they
/// share it.
pub const ETRN_WAITING: usize = 64;
/// Replies are sent before more commands are read once this many octets of them wait, so that a
/// client that sends and never reads fills its own socket and not our memory.
pub const REPLIES_WAITING: usize = 16 * 1024;
/// What a client may take between commands (RFC 5321 4.5.3.2.7).
pub const SERVER_COMMAND: Duration = Duration::from_secs(5 * 60);
/// What a client may take between two pieces of data (RFC 5321 4.5.3.2.5, the server's side).
pub const SERVER_DATA_BLOCK: Duration = Duration::from_secs(3 * 60);
/// What a client may take to read a reply before its session is cut off.
pub const SERVER_WRITE: Duration = Duration::from_secs(5 * 60);
/// What a balancer may take for its PROXY header.
pub const PROXY_HEADER: Duration = Duration::from_secs(10);
/// What a client may take for a TLS handshake, all of it.
pub const TLS_HANDSHAKE: Duration = Duration::from_secs(30);
/// The longest one transaction's data may take in all, so that a trickle ends.
pub const SERVER_DATA_TOTAL: Duration = Duration::from_secs(60 * 60);

/// The least octets a second of a body on average, from [`UPLOAD_GRACE`] on: each one that is
/// under way holds memory, of which a worker has a bounded amount, and a large one its segments.
pub const UPLOAD_RATE_LEAST: u64 = 1024;
/// What a body may take before its rate counts.
pub const UPLOAD_GRACE: Duration = Duration::from_secs(60);
/// The same two while others wait for the memory that slow bodies hold.
pub const UPLOAD_RATE_PRESSED: u64 = 8 * 1024;
/// See [`UPLOAD_RATE_PRESSED`].
pub const UPLOAD_GRACE_PRESSED: Duration = Duration::from_secs(10);
/// How long a client may say nothing between two commands of a transaction that is passed on
/// in-line, while others find no connection to a next hop.
pub const IN_LINE_IDLE_PRESSED: Duration = Duration::from_secs(10);
/// How long who is slow gives way after somebody has found no room for what that holds.
pub const PRESSURE: Duration = Duration::from_secs(2);
/// How long a session does not read on because its worker's receive buffers are used up; then its
/// message is refused.
pub const RECEIVE_PATIENCE: Duration = Duration::from_secs(10);
/// The same for commands, which take little and may tell of the end of something; they are read
/// after that.
pub const RECEIVE_PATIENCE_COMMAND: Duration = Duration::from_secs(1);
/// How long a message waits for room in memory on its way to the disk; then it is refused.
pub const ROOM_PATIENCE: Duration = Duration::from_secs(30);

/// Client time-outs of RFC 5321 4.5.3.2; `[delivery] timeouts` may change them.
pub const CLIENT_CONNECT: Duration = Duration::from_secs(30);
/// 4.5.3.2.1: the 220 greeting.
pub const CLIENT_GREETING: Duration = Duration::from_secs(5 * 60);
/// 4.5.3.2.2 to .4: MAIL, RCPT, and the reply to DATA, for which 2 minutes would do.
pub const CLIENT_COMMAND: Duration = Duration::from_secs(5 * 60);
/// 4.5.3.2.5: one block of data taken by the peer.
pub const CLIENT_DATA_BLOCK: Duration = Duration::from_secs(3 * 60);
/// 4.5.3.2.6: the reply to the end of data.
pub const CLIENT_DATA_END: Duration = Duration::from_secs(10 * 60);
/// What a peer may take to answer QUIT: nothing depends on it any more.
pub const CLIENT_QUIT: Duration = Duration::from_secs(5);
/// The same where the answer shows whether those before it were in step: less than a stop waits.
pub const CLIENT_CONFIRMATION: Duration = Duration::from_secs(10);
/// What a client sends of an envelope before it waits for the replies to it.  RFC 2920 section
/// 3.1: commands and replies in flight must fit the windows, or both sides wait in a write.
/// The 100 recipients of an ordinary transaction fit.
pub const CLIENT_GROUP: usize = 16 * 1024;
/// The largest message that goes out in one flight with its envelope; a larger one waits for the
/// replies to its envelope first.
pub const ONE_FLIGHT_OCTETS: u64 = CHUNK as u64;
/// The most recipients of such a message.
pub const ONE_FLIGHT_RECIPIENTS: usize = 100;
/// The reply of a next hop to a command, where a client of ours waits for it: less than the five
/// minutes that 4.5.3.2.2 and .3 give to MAIL and RCPT, for the client has no more for both of us.
pub const BACKEND_COMMAND: Duration = Duration::from_secs(60);
/// Likewise its greeting: short, so that there is time left to try another of its hosts.
pub const BACKEND_GREETING: Duration = Duration::from_secs(15);
/// Likewise to the end of data, for which 4.5.3.2.6 gives ten.
pub const BACKEND_DATA_END: Duration = Duration::from_secs(9 * 60);
/// Idle connections to a site that a core keeps for sessions that ask it directly.
pub const BACKENDS_KEPT: usize = 8;
/// What a client waits for the next hop to say whether a recipient is there.
pub const CALL_AHEAD: Duration = Duration::from_secs(20);
/// Recipients that a core asks a next hop about at a time.
pub const CALLS_AHEAD: usize = 4;
/// What is gathered of messages in flight before it is written.
pub const CLIENT_WRITE: usize = 64 * 1024;

/// Answers that a core's DNS cache holds.
pub const DNS_CACHE_ENTRIES: usize = 65_536;
/// What they may take of memory, in octets: an answer over TCP may hold 64 KiB.
pub const DNS_CACHE_OCTETS: usize = 32 * 1024 * 1024;
/// Questions that a core has under way with its name servers, at most, and where descriptors are
/// short; more wait for their turn.  Half of them are kept free of questions which nobody could
/// answer the last time.  The edge filter asks some eight for each connection: lists that take
/// 200 ms to answer allow for 5 × 4,096 / 8 = 2,560 connections a second and core.
pub const DNS_QUERIES: RangeInclusive<usize> = 128..=4_096;
/// The same of all cores together: each has a port of its own, of the 28,232 that Linux gives.
pub const DNS_QUERIES_ALL: usize = 16_384;
/// Questions that wait for their turn; beyond, the answer is a temporary failure at once.
pub const DNS_QUERIES_WAITING: usize = 16_384;
/// The aliases that are followed from one name (RFC 1034 section 5.2.2 wants loops to be found).
pub const DNS_ALIASES: usize = 8;
/// An answer that fits one datagram unfragmented on nearly every path (EDNS, RFC 6891).
pub const DNS_DATAGRAM: usize = 1_232;
/// Datagrams that answer something else and are passed over while waiting for an answer.
pub const DNS_STRAY_DATAGRAMS: usize = 64;
/// Sockets to a name server on this machine that a core keeps for further questions.
pub const DNS_SOCKETS_IDLE: usize = 32;
/// The longest that an answer is believed.
pub const DNS_TTL_MAX: Duration = Duration::from_secs(86_400);
/// The longest that an absence is believed (RFC 2308 section 5).
pub const DNS_NEGATIVE_TTL_MAX: Duration = Duration::from_secs(3_600);
/// The shortest that any answer is kept, so that a burst of messages asks once.
pub const DNS_TTL_MIN: Duration = Duration::from_secs(1);
/// How long a failure is remembered at first; it doubles with each in a row.
pub const DNS_FAILURE_TTL: Duration = Duration::from_secs(5);
/// The longest that a failure is remembered (RFC 9520 section 3.2).
pub const DNS_FAILURE_TTL_MAX: Duration = Duration::from_secs(300);
/// Mail hosts of one domain that are looked at, the most preferred first.
pub const MAIL_HOSTS: usize = 32;
/// Addresses of one host that are looked at.
pub const HOST_ADDRESSES: usize = 32;

/// Names behind one client's address that are followed back to it; the others are passed over.
pub const REVERSE_NAMES: usize = 8;

/// What a next hop may take for one piece of a large message ([`CHUNK`] octets), however it
/// trickles: the piece holds a buffer of the log's reader, of which there is a bounded number.
pub const CLIENT_PIECE: Duration = CLIENT_DATA_BLOCK;
/// The same while others wait for such a buffer.
pub const CLIENT_PIECE_PRESSED: Duration = Duration::from_secs(20);
/// What the log's reader may take for one record.  Longer than what slow next hops may keep it
/// waiting for a buffer.
pub const READ_PATIENCE: Duration = Duration::from_secs(60);
/// What work on the blocking pool may take, its wait for a thread included.
pub const BLOCKING_PATIENCE: Duration = Duration::from_secs(120);
/// Jobs that may wait for a thread of the blocking pool; one more comes to nothing at once.
pub const BLOCKING_WAITING: usize = 16_384;

/// Fresh connections in a row that a site ended without a word on a message before it rests.
pub const SITE_SILENCES: u32 = 3;

/// The reply text that is kept with a deferral and shown in a notice.
pub const KEPT_REPLY: usize = 512;
/// The keyword lines of a reply to EHLO that are kept until they have been read.
pub const EHLO_REPLY: usize = 8 * 1024;
/// A message up to this size is kept in the receive buffer until its end and copied once into
/// the batch; a larger one is received into chunks.
pub const SMALL_MESSAGE: usize = 32 * 1024;
/// How far into a message its header section is looked at, for loops and missing fields.
pub const HEADER_LOOK: usize = 64 * 1024;
/// A chunk of a large message: what one read of the log and one write of a batch move.
pub const CHUNK: usize = 256 * 1024;
/// Chunks of one upload that may wait for the disk.
pub const CHUNKS_IN_FLIGHT: usize = 2;

/// Messages that one job of the log's compaction may know of while it surveys: some 300 octets
/// each.  A segment of outcomes alone may speak of more; it is left until fewer of them matter.
pub const COMPACTION_MESSAGES: usize = 512 * 1024;

/// Destinations without messages that a core remembers, so that the next message to them need
/// not wait for a look-up: some 200 octets each.
pub const DESTINATIONS_REMEMBERED: u32 = 16_384;
/// Destinations whose mail exchangers a core asks for at a time; others wait for their turn.  Many,
/// so that domains whose servers are silent do not hold up those of the others: each is a task of
/// some kilobytes.
pub const RESOLUTIONS_AT_ONCE: u32 = 1_024;
/// Of those, the ones that are kept free of destinations for which nobody could tell the last time.
pub const RESOLUTIONS_RESERVED: u32 = RESOLUTIONS_AT_ONCE / 2;

/// Events that a worker hands to the event log at a time, in octets.
pub const EVENT_BLOCK: usize = 32 * 1024;
/// Events that wait for the event log's writer, in octets, of all workers together.
pub const EVENT_QUEUE: usize = 8 * 1024 * 1024;
/// Events that a worker keeps when that queue is full, in octets.  It takes no new sessions
/// meanwhile; what comes beyond this from those that it has is lost and counted.
pub const EVENT_BACKLOG: usize = 16 * 1024 * 1024;
/// What one explanation of a verdict takes as text, at most.
pub const EXPLANATION: usize = 8 * 1024;
/// What a worker remembers of explanations, in octets: half of it for messages, some thousands of
/// each.
pub const EXPLANATIONS: usize = 4 * 1024 * 1024;
/// Messages that rspamd is shown at a time, by all workers together, each over a connection of its
/// own; more wait for their turn.  Half of them may be read back from the log, and of each of those
/// there are two chunks at most: the one that is read while the end of the one before is written.  So
/// they take 64 MiB.  Half of them may be shown while they come, in-line.
pub const RSPAMD_AT_ONCE: usize = 256;
/// What is written at a time of a message on its way to rspamd.
pub const RSPAMD_PIECE: usize = 64 * 1024;
/// What is kept of a message in-line until it is whole, to be shown to rspamd in one go; it counts
/// among what messages on their way in may take.  A larger one is shown while it comes.
pub const RSPAMD_HELD: usize = 64 * 1024;
/// What a connection to rspamd may take until it stands, all addresses of its host together, within
/// the deadline of its message.
pub const RSPAMD_CONNECT: Duration = Duration::from_secs(5);
/// Connections to rspamd that are kept for the next message.
pub const RSPAMD_KEPT: usize = 32;
/// How long one is kept without a message: less than what servers and what is between wait for.
pub const RSPAMD_IDLE: Duration = Duration::from_secs(30);
/// What rspamd may answer.  Nearly always it is some kilobytes; but every URL and address of the
/// message is in it, and so its sender has a say in its size: 10,240 URLs, the most that rspamd 3.4
/// tells of, can make 2.6 MB, and its operator can raise that number.
pub const RSPAMD_ANSWER: usize = 8 * 1024 * 1024;
/// What an answer may take without being among the large ones.
pub const RSPAMD_SMALL_ANSWER: usize = 128 * 1024;
/// Answers that may grow beyond that at a time; others wait for their turn, in their deadline.
/// Answers so take 64 MiB at most: 32 MiB of small ones, as many of large ones, since neither kind
/// takes more memory than it may have octets.  They are read one at a time, and nothing is kept of
/// what is not used.
pub const RSPAMD_LARGE_ANSWERS: usize = 4;
/// The recipients that rspamd is told of, in octets of its request's head.
pub const RSPAMD_RECIPIENTS: usize = 32 * 1024;
/// Connections to an admin listener; more wait in its backlog.
pub const ADMIN_CONNECTIONS: usize = 64;
/// Descriptors that the process keeps below its hard limit, for admin connections alone.
pub const ADMIN_DESCRIPTORS: u64 = ADMIN_CONNECTIONS as u64;
/// The head of an admin request.
pub const ADMIN_HEAD: usize = 16 * 1024;
/// The body of an admin request: some sixty thousand message ids.
pub const ADMIN_BODY: usize = 1024 * 1024;
/// What an admin client may take for the head of its request.
pub const ADMIN_HEAD_TIME: Duration = Duration::from_secs(10);
/// What an admin connection, which carries one request, may take in all.
pub const ADMIN_CONNECTION_TIME: Duration = Duration::from_secs(120);
/// Messages on one page of a queue listing.
pub const ADMIN_PAGE: usize = 1_000;
/// What a worker may take to answer a ping or a count.
pub const WORKER_ANSWER: Duration = Duration::from_secs(5);
/// What a worker may take to list messages, whose envelopes it reads from the log, or to change
/// them, which it writes there.
pub const WORKER_WORK: Duration = Duration::from_secs(30);

const _: () = assert!(PATH >= LOCAL_PART + 1 + 2);
const _: () = assert!(RSPAMD_AT_ONCE / 2 * 2 * CHUNK <= 64 * 1024 * 1024);
const _: () = assert!(
    RSPAMD_AT_ONCE * RSPAMD_SMALL_ANSWER + RSPAMD_LARGE_ANSWERS * RSPAMD_ANSWER <= 64 * 1024 * 1024
);
// A list fits a message, and an envelope's indices fit 16 bits.
const _: () = assert!(EXPANDED_RECIPIENTS <= RECIPIENTS_MAX / 2);
const _: () = assert!(COMMAND_LINE >= 512 + ENVID + ORCPT + 26 + 17 + 10);
// A large upload costs its chunks in flight, the one being filled, and the receive buffer.
const _: () = assert!((CHUNKS_IN_FLIGHT + 1) * CHUNK + 2 * SMALL_MESSAGE <= 1024 * 1024);
// Who waits for a buffer outlasts those that have to give theirs back.
const _: () = assert!(READ_PATIENCE.as_secs() > 2 * CLIENT_PIECE_PRESSED.as_secs());
const _: () = assert!(ROOM_PATIENCE.as_secs() > 2 * UPLOAD_GRACE_PRESSED.as_secs());
// What all workers hand over at once still fits the queue, and a request outlasts its workers.
const _: () = assert!(EVENT_QUEUE >= 128 * EVENT_BLOCK);
const _: () = assert!(ADMIN_CONNECTION_TIME.as_secs() > 2 * WORKER_WORK.as_secs());
