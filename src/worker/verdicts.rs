//! What a worker tells and remembers of the edge filter's verdicts.

use std::rc::Rc;

use super::Worker;
use crate::control::events::{Addressees, Event, EventKind};
use crate::edge::explanation::Explanation;
use crate::message::MessageId;
use crate::queue::handle::Handle;

impl Worker {
    /// A transaction was judged, or a session that came to none.
    pub fn report_verdict(&self, explanation: &Explanation) {
        self.metrics.verdicts.count(explanation.action.as_str());
        for finding in explanation.findings.iter().filter(|finding| finding.counts()) {
            self.metrics.findings.count(&finding.check);
        }
        let to: Vec<&str> = explanation.to.iter().map(|asked| &*asked.address).collect();
        self.events.emit(&Event {
            session: Some(explanation.session),
            message: explanation.message,
            peer: Some(explanation.peer),
            helo: Some(&*explanation.helo).filter(|helo| !helo.is_empty()),
            from: explanation.from.as_deref(),
            to: if to.is_empty() { Addressees::None } else { Addressees::Words(&to) },
            reply: explanation.reply.as_deref(),
            action: Some(explanation.action.as_str()),
            score: Some(explanation.score),
            causes: Some(&explanation.findings),
            ..Event::new(EventKind::Verdict)
        });
        self.explanations.borrow_mut().remember(explanation);
    }

    /// Whether a message waits where the edge filter has put it.
    pub fn is_kept_back(&self, handle: &Handle) -> bool {
        let quarantine = self.sites.quarantine();
        self.with_queue(|queue| queue.destination(handle.destination()) == Some(&quarantine))
    }

    /// What is known of verdicts on a session, or on a message: what is remembered, and what stands
    /// in the record of a message that is in this worker's part of the queue.
    pub(super) async fn explanations_of(self: &Rc<Self>, id: MessageId) -> Vec<Explanation> {
        let mut found = self.explanations.borrow().find(id);
        if found.is_empty() {
            let is_it = |handle: &&Handle| handle.id == id;
            let place = self.with_queue(|queue| {
                queue.iter().map(|(_, handle)| handle).find(is_it).map(|handle| handle.place)
            });
            // One whose record cannot be read, or is gone by now, is none that anybody can explain.
            if let Some(place) = place
                && let Ok(message) = self.load(id, place).await
            {
                found.extend(message.explanation());
            }
        }
        found
    }
}
