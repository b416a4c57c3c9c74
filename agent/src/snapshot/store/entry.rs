//! What a worker gets to see of a pod.

use std::sync::Arc;

use kiam_wire::{Pod, PodState, Refused};

use crate::response::{Media, Response, Status};
use crate::snapshot::{Answers, Entry, Refusals, Standing};

/// The entry of `pod`. `answers` are the unexpired credentials its state names, when they are held:
/// a pod is answered from them whether the server calls it granted or pending.
pub(super) fn of(pod: &Pod, answers: Option<&Arc<Answers>>) -> Entry {
    let standing = match (&pod.state, answers) {
        (PodState::Granted(_) | PodState::Pending(_), Some(answers)) => {
            Standing::Granted(Arc::clone(answers))
        }
        (PodState::Granted(_) | PodState::Pending(_), None) => Standing::Pending,
        (PodState::Refused(refused), _) => {
            Standing::Refused(refused.reason(), Box::new(refusals(refused)))
        }
        (PodState::NoRole, _) => Standing::NoRole,
    };
    Entry {
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        service_account: pod.service_account.clone(),
        imds_v2_required: pod.imds_v2_required,
        standing,
    }
}

fn refusals(refused: &Refused) -> Refusals {
    let body = serde_json::json!({ "Code": "AccessDenied", "Message": refused.text() }).to_string();
    Refusals {
        metadata: Response::new(
            Status::Forbidden,
            Media::Text,
            &[("x-kiam-reason", refused.text())],
            b"",
        ),
        container: Response::new(Status::Forbidden, Media::Json, &[], body.as_bytes()),
    }
}
