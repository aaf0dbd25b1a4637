//! What a worker answers to the control thread.

use std::rc::Rc;

use tokio::sync::oneshot;

use super::Worker;
use crate::control::port::{Answer, Request};

/// Answers one request.
pub async fn answer(_worker: Rc<Worker>, request: Request, answer: oneshot::Sender<Answer>) {
    let _ = request;
    let _ = answer.send(Answer::Pong);
}
