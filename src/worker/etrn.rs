//! ETRN (RFC 1985): a client has the mail for its domain tried now, on every worker.
//!
//! A session's request waits at its worker's [`Desk`] for the next errand, which goes round all
//! workers: each looks through its own destinations once for all nodes of the errand, some of them
//! at a time, makes what waits due, and says what it found.  When the last has answered, so do the sessions.
//!
//! What it costs is bounded whatever clients send: one errand a second and worker, with at most
//! [`limits::ETRN_WAITING`] nodes; what comes beyond is refused with 458.
//!
//! What it does not do: it reads no envelopes.  Where mail exchangers take it, mail is filed under
//! its domain; a route for exactly the domain names its mail too; a route for more (`*` to a smart
//! host) is started as a whole, and the answer gives no number.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{Letter, Worker};
use crate::config::{Config, Reach, Route, RouteIndex};
use crate::limits;
use crate::queue::destination::{CourseIndex, Destination};
use crate::queue::scheduler::Event;
use crate::runtime;
use crate::runtime::notify::Handover;
use crate::smtp::command::Node;
use crate::smtp::reply::{QueueStart, Refusal};

/// The requests of a worker's sessions.
#[derive(Default)]
pub(super) struct Desk {
    /// For the next errand; `waiting.len() <= ETRN_WAITING`.
    waiting: RefCell<Vec<Request>>,
    under_way: RefCell<Option<UnderWay>>,
    /// No errand is sent before then.
    rests_until_unix_ms: Cell<u64>,
}

struct Request {
    node: Node,
    answer: Rc<Handover<Found>>,
}

/// An errand that is not back from all workers.
struct UnderWay {
    requests: Vec<Request>,
    /// What was found so far, one for each request.
    found: Vec<Found>,
    answers_left: usize,
}

/// Nodes that every worker is to look for.
#[derive(Clone)]
pub struct Errand {
    nodes: Arc<[Node]>,
    /// The worker that is to be told.
    from: usize,
}

/// What waits for a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    messages: u64,
    /// Some of them may be for other domains.
    among_others: bool,
}

/// The routes that mail for a node may take.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ways {
    routes: Vec<RouteIndex>,
    /// They take mail for other domains too.
    among_others: bool,
}

/// A node on this core: the courses that its mail may take.
struct Wanted<'a> {
    node: &'a Node,
    courses: Vec<CourseIndex>,
    among_others: bool,
}

impl Worker {
    /// Has the mail for a node tried now; the session's side.
    ///
    /// # Errors
    /// `QueueBusy`: too many others want the same, or nothing can be sent at present.
    pub async fn start_queue(&self, node: Node) -> Result<QueueStart, Refusal> {
        if self.is_stopping() || self.log.has_failed() {
            return Err(Refusal::QueueBusy);
        }
        let answer = self.etrn.take(node).ok_or(Refusal::QueueBusy)?;
        let found = runtime::timeout(limits::WORKER_ANSWER, answer.take()).await;
        // The request stays where it is: the queue is started, only nobody waits for the number.
        Ok(found.map_or(QueueStart::Unknown, Found::answer))
    }

    /// Sends what waits at the desk round the workers.
    pub(super) fn send_errand(&self) {
        let now_unix_ms = self.now_unix_ms();
        if let Some(nodes) = self.etrn.begin(now_unix_ms, self.posts.len()) {
            let errand = Errand { nodes, from: self.index };
            for to in 0..self.posts.len() {
                self.tell(to, Letter::Etrn(errand.clone()));
            }
        }
    }

    /// Does what a worker asks of all, in turns between which sessions go on.
    pub(super) async fn run_errand(self: Rc<Self>, errand: Errand) {
        let wanted: Vec<Wanted> = errand.nodes.iter().map(|node| self.wanted(node)).collect();
        let mut found = vec![Found::default(); wanted.len()];
        // All is counted before anything is made due: the first that is wakes a site for others.
        let (mut due, mut place) = (Vec::new(), 0);
        while place < self.with_queue(|queue| queue.destination_places()) {
            let next = place.saturating_add(DESTINATIONS_A_TURN);
            self.look_for(place..next, &wanted, &mut found, &mut due);
            place = next;
            runtime::sleep(TURN_PAUSE).await;
        }
        let mut messages = 0;
        for (destination, waiting) in due {
            self.queue_event(Event::RetryDestination { destination });
            messages += waiting;
            if messages >= MESSAGES_A_TURN {
                messages = 0;
                runtime::sleep(TURN_PAUSE).await;
            }
        }
        self.tell(errand.from, Letter::EtrnDone(found.into()));
    }

    /// Takes what another worker has found.
    pub(super) fn errand_done(&self, found: &[Found]) {
        self.etrn.gather(found);
    }

    fn wanted<'a>(&self, node: &'a Node) -> Wanted<'a> {
        let Ways { routes, among_others } = Ways::of(&self.config, node);
        let courses = routes.into_iter().flat_map(|way| self.sites.courses_of(way)).collect();
        Wanted { node, courses, among_others }
    }

    /// Counts what waits for some nodes under the destinations at some places, and lists those.
    fn look_for(
        &self,
        places: Range<u32>,
        wanted: &[Wanted],
        found: &mut [Found],
        due: &mut Vec<(Destination, u64)>,
    ) {
        let now_unix_ms = self.now_unix_ms();
        self.with_queue(|queue| {
            for place in places.start..places.end.min(queue.destination_places()) {
                let Some((destination, waiting)) = queue.waiting_at(place, now_unix_ms) else {
                    continue;
                };
                let mut is_meant = false;
                for (wanted, found) in wanted.iter().zip(found.iter_mut()) {
                    is_meant |= wanted.count(destination, waiting, found);
                }
                if is_meant {
                    due.push((destination.clone(), waiting));
                }
            }
        });
    }
}

impl Wanted<'_> {
    /// Adds what waits for a destination, if its mail is meant; tells whether it is.
    fn count(&self, destination: &Destination, waiting: u64, found: &mut Found) -> bool {
        let domain = destination.domain.as_deref();
        let is_meant = self.courses.contains(&destination.course)
            && domain.is_none_or(|domain| self.node.covers(domain));
        if is_meant {
            found.messages += waiting;
            // Where exchangers take the mail, a destination is one domain's alone.
            found.among_others |= domain.is_none() && self.among_others;
        }
        is_meant
    }
}

impl Desk {
    /// Takes a request; `None` if there are too many.
    fn take(&self, node: Node) -> Option<Rc<Handover<Found>>> {
        let mut waiting = self.waiting.borrow_mut();
        (waiting.len() < limits::ETRN_WAITING).then(|| {
            let answer = Rc::new(Handover::default());
            waiting.push(Request { node, answer: answer.clone() });
            answer
        })
    }

    /// Makes an errand of what waits, if one may begin now.
    fn begin(&self, now_unix_ms: u64, workers: usize) -> Option<Arc<[Node]>> {
        let is_free = self.under_way.borrow().is_none()
            && now_unix_ms >= self.rests_until_unix_ms.get()
            && !self.waiting.borrow().is_empty();
        is_free.then(|| {
            let requests = self.waiting.take();
            let nodes = requests.iter().map(|request| request.node.clone()).collect();
            let found = vec![Found::default(); requests.len()];
            self.rests_until_unix_ms.set(now_unix_ms + ERRAND_PAUSE_MS);
            let under_way = UnderWay { requests, found, answers_left: workers };
            *self.under_way.borrow_mut() = Some(under_way);
            nodes
        })
    }

    /// Adds what one worker has found; after the last one the sessions are told.
    fn gather(&self, found: &[Found]) {
        let mut under_way = self.under_way.borrow_mut();
        let Some(round) = under_way.as_mut() else { return };
        for (sum, found) in round.found.iter_mut().zip(found) {
            sum.messages += found.messages;
            sum.among_others |= found.among_others;
        }
        round.answers_left -= 1;
        if round.answers_left > 0 {
            return;
        }
        for (request, found) in round.requests.iter().zip(&round.found) {
            request.answer.give(*found);
        }
        *under_way = None;
    }
}

impl Found {
    fn answer(self) -> QueueStart {
        match self {
            Found { messages: 0, .. } => QueueStart::Nothing,
            Found { among_others: true, .. } => QueueStart::Something,
            Found { messages, .. } => QueueStart::Messages(messages),
        }
    }
}

impl Ways {
    /// The routes for a node, in the order of the configuration: what stands behind one that
    /// takes all of the domain's mail gets none of it.
    fn of(config: &Config, node: &Node) -> Ways {
        let mut ways = Ways::default();
        for (place, route) in (0..).zip(config.routes.iter()) {
            let reach = match node {
                Node::Domain(domain) => route.recipient.reach(domain),
                Node::Subdomains(domain) if route.recipient.is_everything() => {
                    route.recipient.reach(domain)
                }
                Node::Subdomains(domain)
                    if route.recipient.reach(domain) != Reach::Nothing
                        || route.recipient.reaches_below(domain) =>
                {
                    Reach::Part
                }
                Node::Subdomains(_) | Node::Named => Reach::Nothing,
            };
            if reach == Reach::Nothing {
                continue;
            }
            ways.routes.push(RouteIndex(place));
            if reach == Reach::Whole {
                break;
            }
        }
        // Routes share a site where they lead to the same next hop.
        let shares = |other: &Route| {
            let same = |way: &Route| way.to == other.to && way.source == other.source;
            ways.routes.iter().any(|&way| same(&config.routes[way]))
        };
        let is_foreign =
            |route: &Route| route.recipient.only_domain().is_none_or(|only| !node.covers(only));
        ways.among_others = config.routes.iter().any(|route| is_foreign(route) && shares(route));
        ways
    }
}

/// How long after an errand the next one may begin.
const ERRAND_PAUSE_MS: u64 = 1_000;
/// Destinations that a worker looks at before its sessions have a turn.
const DESTINATIONS_A_TURN: u32 = 1_024;
/// Messages that it makes due before that, but for the last destination's.
const MESSAGES_A_TURN: u64 = 1_024;
/// How long that turn is at least.
const TURN_PAUSE: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {

    use super::*;

    fn config() -> Config {
        let text = r#"
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[[route]]
recipient = "list-*@example.com"
to = "smtp://192.0.2.1"
[[route]]
recipient = "*@example.com"
to = "smtp://192.0.2.2"
[[route]]
recipient = "*@*.example.com"
to = "smtp://192.0.2.3"
[[route]]
recipient = "*@shared.example"
to = "smtp://192.0.2.4"
[[route]]
recipient = "*@other.example"
to = "smtp://192.0.2.4"
[[route]]
recipient = "*"
to = "smtp://192.0.2.5"
"#;
        Config::for_test(text)
    }

    fn node(text: &str) -> Node {
        Node::parse(text).expect("a node")
    }

    #[test]
    fn a_node_has_the_routes_that_its_mail_may_take() {
        for (name, routes, among_others) in [
            ("example.com", vec![0, 1], false),
            ("a.example.com", vec![2], true),
            ("@example.com", vec![0, 1, 2, 5], true),
            ("shared.example", vec![3], true),
            ("elsewhere.example", vec![5], true),
        ] {
            let routes = routes.into_iter().map(RouteIndex).collect();
            let expected = Ways { routes, among_others };
            assert_eq!(Ways::of(&config(), &node(name)), expected, "{name}");
        }
    }

    #[test]
    fn an_errand_goes_round_all_and_answers_each_request() {
        let desk = Desk::default();
        assert_eq!(desk.begin(0, 2), None, "nobody asked");
        let first = desk.take(node("a.example")).expect("room");
        let second = desk.take(node("b.example")).expect("room");
        let nodes = desk.begin(1_000, 2).expect("two wait");
        assert_eq!(*nodes, [node("a.example"), node("b.example")]);

        let third = desk.take(node("c.example")).expect("room");
        assert_eq!(desk.begin(9_000, 2), None, "one is under way");
        let none = Found::default();
        desk.gather(&[Found { messages: 2, among_others: false }, none]);
        assert_eq!(first.take_now(), None, "a worker has not answered yet");
        desk.gather(&[Found { messages: 1, among_others: true }, none]);
        let sum = Found { messages: 3, among_others: true };
        assert_eq!((first.take_now(), second.take_now()), (Some(sum), Some(none)));
        assert_eq!(third.take_now(), None);
        desk.gather(&[none]);

        assert_eq!(desk.begin(1_999, 1), None, "not within a second");
        assert!(desk.begin(2_000, 1).is_some());
        desk.gather(&[none]);
        assert_eq!(third.take_now(), Some(none));
    }

    #[test]
    fn requests_have_a_bound() {
        let desk = Desk::default();
        for _ in 0..limits::ETRN_WAITING {
            assert!(desk.take(node("a.example")).is_some());
        }
        assert!(desk.take(node("a.example")).is_none());
        assert!(desk.begin(0, 1).is_some());
        assert!(desk.take(node("a.example")).is_some());
    }

    #[test]
    fn an_answer_says_no_more_than_is_known() {
        let found = |messages, among_others| Found { messages, among_others }.answer();
        assert_eq!(found(0, true), QueueStart::Nothing);
        assert_eq!(found(2, true), QueueStart::Something);
        assert_eq!(found(2, false), QueueStart::Messages(2));
    }
}
